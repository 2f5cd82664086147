"""What a person is told who waits longer than usual for something that reports no progress by itself."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from enclave_cli.status_line import StatusLine

PATIENCE_SECONDS = 0.5
"""What is over by then need not be told."""


class Patience:
    """Around the waiting, as a context manager: on a terminal, what is waited for is told once it lasts."""

    def __init__(self, what: Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
        """`what` is asked in a thread of its own, and only when it is to be told."""
        self._what = what
        self._status = StatusLine(sys.stderr)
        self._lock = threading.Lock()
        self._is_over = False
        self._timer = threading.Timer(seconds, self._tell)
        self._timer.daemon = True

    def _tell(self) -> None:
        text = ""
        with suppress(Exception):  # a remark that cannot be made is left out
            text = self._what()
        with self._lock:
            if text and not self._is_over:
                self._status.show(text)

    def end(self) -> None:
        """What was waited for is there; saying so twice is harmless."""
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            self._status.clear()

    def __enter__(self) -> Patience:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def awaited_daemon() -> str:
    """What somebody waits for who has no connection yet."""
    from enclave.discovery import running
    from enclave.paths import places

    found = running(places(os.environ))
    if found is None:
        return "starting the daemon"
    return "waiting for the daemon" + ("" if found.pid is None else f" (pid {found.pid})")
