"""One thread of the blocking client connects, for all that need a connection; the others wait for it.

Nobody waits longer than it is needed: a close, a cancel and the deadline of what is to be asked again end the waiting.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from enclave.exceptions import EnclaveError, error_for

if TYPE_CHECKING:
    from enclave.connection import Connection
    from enclave.conversation import Answer


class Attempt:
    """A thread's attempt to connect, for all that wait for it."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        """What it makes, before it is the client's."""
        self.error: EnclaveError | None = None
        """Why it failed. An attempt that is over without one has succeeded, or was given up and another may follow."""


class Connecting:
    """One process's attempt to connect, and those that wait for it."""

    def __init__(self) -> None:
        # No connection's lock is taken while this one is held.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.attempt: Attempt | None = None
        self.closings = 0
        """Counts `close`: what began to connect before it ends there."""

    def end(self, attempt: Attempt) -> None:
        """The attempt is over, if it has begun."""
        with self.lock:
            if self.attempt is attempt:
                self.attempt = None
                self.changed.notify_all()

    def wake(self) -> None:
        """Have those that wait, and the one that connects, look whether they still have to."""
        with self.lock:
            self.changed.notify_all()
            connection = self.attempt.connection if self.attempt is not None else None
        if connection is not None:
            connection.wake()


class Need:
    """What a connection is wanted for: a new call, or an answer that was lost with the last one."""

    def __init__(self, connecting: Connecting, answer: Answer | None) -> None:
        self._connecting = connecting
        self._closings = connecting.closings
        self._answer = answer
        self.ends_at = None if answer is None else answer.ends_at

    def is_over(self) -> bool:
        """Whether it was closed or cancelled meanwhile."""
        return self._is_closed or (self._answer is not None and self._answer.done)

    @property
    def _is_closed(self) -> bool:
        return self._connecting.closings != self._closings

    def raise_if_closed(self) -> None:
        """Raises CancelledError when the client was closed meanwhile."""
        if self._is_closed:
            raise error_for("cancelled", "the client was closed")

    def raise_if_over(self) -> None:
        """Raises CancelledError or DeadlineError when no connection is needed any more."""
        self.raise_if_closed()
        if self.is_over():
            raise error_for("cancelled")
        if self.ends_at is not None and self.ends_at <= time.monotonic():
            raise error_for("deadline")

    @property
    def seconds(self) -> float | None:
        """What is left until its deadline."""
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())
