"""A model's files on their way from the disk into the system's cache before a worker asks for them.

While a request waits for memory, for a worker to start or for another model to leave, the disk has nothing to do.
Nothing is read here: the system is only told that it will be wanted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress


def read_ahead(paths: Iterable[str]) -> None:
    """Tells the system that whole files will be wanted. Runs in a thread: a disk may take its time even to be told.
    What cannot be opened is left to whoever loads it."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
