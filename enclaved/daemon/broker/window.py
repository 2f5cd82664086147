"""How many bytes one client has been sent and has not read yet. Pure.

ZeroMQ takes whatever it is given and says nothing of what became of it. So the daemon asks: a ping goes behind what was
sent, and its pong says that all before it was read. Its data cannot be guessed, so nobody can answer without reading.
"""

from __future__ import annotations

from collections import deque

PARTS = 8
"""A ping goes out each time that an eighth of the budget was sent: asking costs little, and the window stays nearly
whole for who reads."""

FRAME_OVERHEAD_BYTES = 96
"""What libzmq keeps of a frame beside its bytes: a message of 64 and its place in a queue."""


class Window:
    """Counts in bytes that are sent altogether."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._sent = 0
        self._read = 0
        self._asked = 0
        self._forced = 0
        """Sent while it was closed, since then."""
        self._pings: deque[tuple[bytes, int]] = deque()

    def __repr__(self) -> str:
        return f"<Window: {self.unread_bytes} of {self.budget_bytes} bytes unread>"

    @property
    def unread_bytes(self) -> int:
        return self._sent - self._read

    @property
    def is_open(self) -> bool:
        """Whether more may be sent. What does not ask goes on `forced`."""
        return self.unread_bytes < self.budget_bytes

    @property
    def is_burst(self) -> bool:
        """Whether as much again was forced through the closed window: who goes on asking without reading."""
        return self._forced >= self.budget_bytes

    @property
    def ping_due(self) -> bool:
        """Whether it is time to ask what was read."""
        return self._sent - self._asked >= self.budget_bytes // PARTS

    def sent(self, frames: list[bytes]) -> None:
        """Count a message."""
        size_bytes = sum(map(len, frames)) + FRAME_OVERHEAD_BYTES * len(frames)
        if not self.is_open:
            self._forced += size_bytes
        self._sent += size_bytes

    def asked(self, data: bytes) -> None:
        """Count a ping with this data as sent."""
        self._asked = self._sent
        self._pings.append((data, self._sent))

    def answered(self, data: bytes) -> bool:
        """Book a pong; False when no ping that is still open had this data."""
        if not any(known == data for known, _ in self._pings):
            return False
        while True:
            known, position = self._pings.popleft()
            if known == data:
                self._read = position
                self._forced = 0
                return True
