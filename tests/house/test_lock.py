"""requirements.lock pins everything by hash; no committed file holds an index's address or a path of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from enclave_setup.app import workspace
from enclave_setup.lock import name_of, normalized, stanzas, to_pin

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")

# Hosts of package indexes, put together here so that this file holds no address either.
INDEXES = re.compile(
    "|".join(
        (
            r"pypi\." + r"org/(simple|pypi)",
            r"files\.python" + r"hosted\.org",
            r"registry\.npm" + r"js\.org",
            r"download\.py" + r"torch\.org/whl",
            r"https?://[^\s\"'`)]+/simple\b(?<!\.example/simple)",
        )
    )
)

# A clone may lie right in one of these, and a file may name them for other reasons.
SHARED_PLACES = {"/", "/home", "/mnt", "/opt", "/srv", "/tmp", "/usr/src", "/var/tmp"}


def committed_texts() -> Iterator[tuple[Path, str]]:
    """Each text file that is committed or could be, with its content."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    listed = subprocess.run(
        [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content[:8192]:
            yield path, content.decode("utf-8", errors="replace")


def test_every_pin_is_exact_and_has_hashes() -> None:
    pins = stanzas(LOCK)
    assert len(pins) > 40
    for name, stanza in pins:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", stanza), name
        assert re.match(r"\S+==[\w.+!]+ (;.*)?\\$", stanza.splitlines()[0]), name


def test_the_lock_holds_pins_and_nothing_else() -> None:
    held = "".join(stanza for _, stanza in stanzas(LOCK))
    assert [line for line in LOCK.splitlines() if line and line[0] != "#"] == held.splitlines()
    assert "://" not in LOCK
    assert "@" not in LOCK


def test_every_requirement_of_the_workspace_is_pinned() -> None:
    pinned = {name for name, _ in stanzas(LOCK)}
    assert {name_of(requirement) for requirement in to_pin(workspace().values())} <= pinned


def test_build_requirements_are_pinned_too() -> None:
    pinned = {name for name, _ in stanzas(LOCK)}
    for folder in workspace():
        build = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
        assert {name_of(requirement) for requirement in build["requires"]} <= pinned, folder
    assert {"uv", "cmake", "ninja", "scikit-build-core"} <= pinned


def test_torch_is_not_needed() -> None:
    assert not {name for name, _ in stanzas(LOCK)} & {"torch", "tensorflow", "jax", "enclave"}


def test_no_committed_file_names_a_package_index() -> None:
    assert {
        path.relative_to(ROOT): found[0] for path, text in committed_texts() if (found := INDEXES.search(text))
    } == {}


def test_no_committed_file_names_a_place_on_this_machine() -> None:
    places = {str(place) for place in (ROOT, ROOT.parent, Path.home()) if str(place) not in SHARED_PLACES}
    here = re.compile("|".join(rf"(?<![\w.\-/]){re.escape(place)}/" for place in places))
    assert {path.relative_to(ROOT): found[0] for path, text in committed_texts() if (found := here.search(text))} == {}


def test_the_distributions_are_these_and_agree_on_version_and_license() -> None:
    projects = {normalized(project["project"]["name"]): project["project"] for project in workspace().values()}
    assert {"enclaved", "enclaved-client", "enclaved-cli", "enclaved-llama-cpp"} <= set(projects)
    assert {(project["version"], project["license"], project["requires-python"]) for project in projects.values()} == {
        ("0.1.0", "Apache-2.0", ">=3.11,<3.14")
    }
