"""Which files are whole, so that their models may be offered: not those that somebody still writes. Pure.

Where the system says who writes, that decides; where it does not, a file that has just changed may change again. Then
the header of a file that came just now has to say that nothing is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QUIET_SECONDS = 2.0
"""So long nothing may have changed in a file of which the system does not say who writes it."""
FRESH_SECONDS = 10.0
"""So long a file is taken for one that is just coming, whose header must have been read."""

HeaderState = Literal["read", "unread", "cut off", "refused", "none"]
"""`none`: nobody reads headers of such files. `refused`: it was read, and is no model."""


@dataclass(frozen=True)
class Arrival:
    """What is known of one file that was listed."""

    is_being_written: bool | None
    """None where the system does not say."""
    age_seconds: float
    """Since its content was changed last; below 0 where clocks differ."""
    header: HeaderState


@dataclass(frozen=True)
class Verdict:
    """Whether a file may be offered now, and in how many seconds to look again by itself."""

    is_offered: bool
    again_seconds: float | None = None


def verdict(file: Arrival) -> Verdict:
    """Whether a file may be offered. Without `again_seconds`, news of it will come."""
    if file.is_being_written:
        return Verdict(False)
    if file.is_being_written is None and 0 <= file.age_seconds < QUIET_SECONDS:
        return Verdict(False, QUIET_SECONDS - file.age_seconds)
    if file.header == "cut off":
        return Verdict(False)
    if 0 <= file.age_seconds < FRESH_SECONDS and file.header in ("unread", "refused"):
        # One that is refused may be filled in from its end.
        return Verdict(False, FRESH_SECONDS - file.age_seconds)
    return Verdict(True)
