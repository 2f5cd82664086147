"""Work that recurses once a character, on a stack that is large enough for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from enclaved.plugin.engine import EngineError

STACK_BYTES_A_CHARACTER = 1024
"""The regular expressions of the C++ library took 335, measured."""
STACK_BYTES_LEAST = 8 * 1024 * 1024
STACK_BYTES_MAX = 1024 * 1024 * 1024
"""Address space, of which only what is used becomes memory. A word of 3 million characters fits."""

T = TypeVar("T")

_sizing = threading.Lock()


def run_deep(work: Callable[[], T], characters: int) -> T:
    """What `work` gives, or raises, in a thread of its own with a stack for so many characters.

    Raises EngineError when there is no memory for that.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
            failed.append(error)

    size_bytes = min(max(characters * STACK_BYTES_A_CHARACTER, STACK_BYTES_LEAST), STACK_BYTES_MAX)
    thread = threading.Thread(target=run, name="deep")
    # The size is the process's: threads that others start at this moment get it too, which costs them nothing.
    with _sizing:
        before = threading.stack_size(size_bytes)
        try:
            thread.start()
        except RuntimeError as error:
            raise EngineError("there is no memory for so long a text") from error
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
