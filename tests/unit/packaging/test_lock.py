"""Reading requirements.lock."""

from __future__ import annotations

import pytest
from enclave_setup.lock import name_of, stanzas, subset, surplus, to_pin

LOCK = """# made by make lock
Foo_Bar==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
numpy==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:cc
numpy==2.1 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
"""


def test_a_pin_keeps_its_hashes_and_its_marker() -> None:
    found = stanzas(LOCK)
    assert [name for name, _ in found] == ["foo-bar", "numpy", "numpy"]
    assert found[0][1] == "Foo_Bar==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"


def test_subsets_split_the_lock_without_loss() -> None:
    one = subset(LOCK, lambda name: name == "numpy")
    other = subset(LOCK, lambda name: name != "numpy")
    assert one.count("numpy==") == 2
    assert sorted((one + other).splitlines()) == sorted(line for line in LOCK.splitlines() if line[0] != "#")


def test_only_what_nobody_asked_for_is_surplus() -> None:
    installed = ["foo.bar", "Numpy", "pip", "setuptools", "enclaved", "left-over"]
    assert surplus(installed, LOCK, ["Enclaved"]) == ["left-over"]


@pytest.mark.parametrize("requirement", ["Foo.bar>=1", "foo_bar[extra] ==2", " foo-bar", "foo-bar;python_version<'4'"])
def test_a_requirement_is_known_by_its_normalized_name(requirement: str) -> None:
    assert name_of(requirement) == "foo-bar"


def test_what_is_not_a_requirement_is_refused() -> None:
    with pytest.raises(ValueError, match="not a requirement"):
        name_of("--index-url")


def test_the_workspace_pins_all_requirements_but_its_own_distributions() -> None:
    root = {
        "project": {"name": "enclaved", "dependencies": ["enclaved-client==1", "msgpack>=1"]},
        "dependency-groups": {"dev": ["pytest"]},
    }
    client = {
        "project": {"name": "Enclaved_Client", "dependencies": ["pyzmq"], "optional-dependencies": {"x": ["rich"]}}
    }
    assert to_pin([root, client]) == ["msgpack>=1", "pytest", "pyzmq", "rich"]
