"""Model files are opened without being read, and never anything that could hold the daemon up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclaved.daemon.catalog import identity_of, open_model_file
from enclaved.daemon.refusal import RefusalError


def _descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()} if Path("/proc/self/fd").is_dir() else set()


def test_a_file_is_opened_and_known_by_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abc")
    descriptor, identity = open_model_file(str(path))
    assert os.read(descriptor, 10) == b"abc"
    os.close(descriptor)
    assert identity.size_bytes == 3
    assert identity == identity_of(str(path))
    assert len(str(identity)) < 100


def test_a_file_that_was_replaced_or_changed_is_another(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abc")
    before = identity_of(str(path))
    (tmp_path / "n").write_bytes(b"abc")
    (tmp_path / "n").replace(path)
    replaced = identity_of(str(path))
    os.utime(path, ns=(1, 1))
    assert len({before, replaced, identity_of(str(path))}) == 3


def test_what_is_no_regular_file_is_refused_at_once_and_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = _descriptors()
    for path in (str(tmp_path), str(tmp_path / "pipe"), str(tmp_path / "missing"), "/dev/null", "a\0b", ""):
        with pytest.raises(RefusalError) as refused:
            open_model_file(path)
        assert refused.value.code == "model_unreadable"
    assert _descriptors() == before


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RefusalError):
        open_model_file(str(tmp_path / "a"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"")
    (tmp_path / "m").chmod(0)
    with pytest.raises(RefusalError, match="may not read"):
        open_model_file(str(tmp_path / "m"))
