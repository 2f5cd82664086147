"""Time, as a value that is passed in: whoever has a deadline asks the clock it was given."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two kinds of time."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people."""
        ...


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
