"""Writes a file so that nobody ever sees half of it.

The source calls it when the model's file is missing; several daemons and threads may do so at once.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PART_SUFFIX = ".part"
PART_SECONDS_MAX = 3600.0
"""Writing takes a second: a part older than this was left by a process that died."""


def write_whole(path: Path, content: bytes) -> None:
    """Puts a file in place at once, whoever else does the same: readers see the old one or the new one, whole.

    Raises OSError, and leaves nothing behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_old_parts(path)
    descriptor, part = tempfile.mkstemp(prefix=path.name + ".", suffix=PART_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every platform can; without it, the file may be missing after a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_old_parts(path: Path) -> None:
    oldest = time.time() - PART_SECONDS_MAX
    for part in path.parent.glob(f"{path.name}.*{PART_SUFFIX}"):
        with suppress(OSError):
            if part.stat().st_mtime < oldest:
                part.unlink()
