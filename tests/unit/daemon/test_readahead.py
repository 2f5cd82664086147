"""Files are asked for whole, and nothing about them can go wrong here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclaved.daemon.readahead import read_ahead

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no such advice")


def test_every_file_is_asked_for_and_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        asked.append((os.fstat(descriptor).st_ino, offset, length))
        assert advice == os.POSIX_FADV_WILLNEED

    monkeypatch.setattr(os, "posix_fadvise", advise)
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_text("weights")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    read_ahead([str(path) for path in paths])
    assert asked == [(path.stat().st_ino, 0, 0) for path in paths]
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_opened_is_left_to_the_load(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("weights")
    os.mkfifo(tmp_path / "pipe")
    read_ahead([str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "pipe"), str(there)])
