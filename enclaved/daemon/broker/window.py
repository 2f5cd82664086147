"""How much one client has been sent and has not read yet. Pure.

ZeroMQ takes whatever it is given and says nothing of what became of it. So the daemon asks: a ping goes behind what was
sent, and its pong says that all before it was read. Its data cannot be guessed, so nobody can answer without reading.
"""

from __future__ import annotations

from collections import deque

PARTS = 8
"""A ping goes out each time that an eighth of the window was sent: asking costs little, and the window stays nearly
whole for who reads."""

FRAME_OVERHEAD_BYTES = 96
"""What libzmq keeps of a frame beside its bytes: a message of 64 and its place in a queue."""

MESSAGES_MAX = 800
"""Below the 1,000 that a socket takes in unless told otherwise. At that mark libzmq stops reading the connection, its
heartbeats included, and a client that only rests would count as gone."""


class Window:
    """Counts the bytes and the messages that are sent altogether."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._bytes = 0
        self._messages = 0
        self._bytes_read = 0
        self._messages_read = 0
        self._bytes_asked = 0
        self._messages_asked = 0
        self._bytes_forced = 0
        """Sent while it was closed, since then."""
        self._pings: deque[tuple[bytes, int, int]] = deque()
        """The data of each, and what was sent before it."""

    def __repr__(self) -> str:
        return (
            f"<Window: {self.unread_bytes} of {self.budget_bytes} bytes unread, "
            f"{self.unread_messages} of {MESSAGES_MAX} messages>"
        )

    @property
    def unread_bytes(self) -> int:
        return self._bytes - self._bytes_read

    @property
    def unread_messages(self) -> int:
        return self._messages - self._messages_read

    @property
    def is_open(self) -> bool:
        """Whether more may be sent. What does not ask goes out all the same, and counts as forced."""
        return (
            self._bytes - self._bytes_read < self.budget_bytes and self._messages - self._messages_read < MESSAGES_MAX
        )

    @property
    def is_burst(self) -> bool:
        """Whether as much again was forced through the closed window: who goes on asking without reading."""
        return self._bytes_forced >= self.budget_bytes

    @property
    def ping_due(self) -> bool:
        """Whether it is time to ask what was read."""
        return (
            self._bytes - self._bytes_asked >= self.budget_bytes // PARTS
            or self._messages - self._messages_asked >= MESSAGES_MAX // PARTS
        )

    def sent(self, frames: list[bytes]) -> None:
        """Count a message."""
        size_bytes = sum(map(len, frames)) + FRAME_OVERHEAD_BYTES * len(frames)
        if not self.is_open:
            self._bytes_forced += size_bytes
        self._bytes += size_bytes
        self._messages += 1

    def asked(self, data: bytes) -> None:
        """Count a ping with this data as sent."""
        self._bytes_asked, self._messages_asked = self._bytes, self._messages
        self._pings.append((data, self._bytes, self._messages))

    def answered(self, data: bytes) -> bool:
        """Book a pong; False when no ping that is still open had this data."""
        if not any(known == data for known, _, _ in self._pings):
            return False
        while True:
            known, self._bytes_read, self._messages_read = self._pings.popleft()
            if known == data:
                self._bytes_forced = 0
                return True
