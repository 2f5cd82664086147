"""Files that are opened for a request are closed, whatever becomes of it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from stand_ins import an_entry

from enclaved.daemon import models
from enclaved.daemon.models import open_files, while_open
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelEntry

pytestmark = pytest.mark.asyncio


async def test_they_are_open_for_so_long(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"abc")
    async with while_open(an_entry(str(tmp_path / "a.gguf"))) as files:
        ((role, name, descriptor, size_bytes),) = files
        assert (role, name, size_bytes) == ("weights", "a.gguf", 3)
        assert os.pread(descriptor, 3, 0) == b"abc"
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


async def test_who_is_cancelled_while_they_are_opened_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"abc")
    loop = asyncio.get_running_loop()
    begun, may_go_on, closed = asyncio.Event(), threading.Event(), asyncio.Event()
    opened: list[int] = []

    def on_a_slow_disk(entry: ModelEntry) -> list[tuple[str, str, int, int]]:
        loop.call_soon_threadsafe(begun.set)
        may_go_on.wait()
        files = open_files(entry)
        opened.extend(descriptor for _, _, descriptor, _ in files)
        return files

    close = os.close

    def noticed(descriptor: int) -> None:
        close(descriptor)
        if descriptor in opened:
            closed.set()

    monkeypatch.setattr(models, "open_files", on_a_slow_disk)
    monkeypatch.setattr(os, "close", noticed)

    async def ask() -> None:
        async with while_open(an_entry(str(tmp_path / "a.gguf"))):
            raise AssertionError("nobody waits for this any more")

    task = asyncio.create_task(ask())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go_on.set()
    await asyncio.wait_for(closed.wait(), 30)


async def test_one_that_is_missing_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="no such file"):
        async with while_open(an_entry(str(tmp_path / "missing.gguf"))):
            raise AssertionError("there is nothing to open")
