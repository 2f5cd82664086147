"""Stop strings: text up to the first of them, and never a part of one shown.

Text that may be the beginning of a stop string is held back until it is clear that it is not. The first is the one that
is complete first, of several that end alike the longest: so it does not matter in which pieces the text comes.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Feed it the text of one sequence in order."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held: str = ""
        self.stopped = False
        """Whether a stop string has been found; nothing is shown afterwards."""

    def feed(self, text: str) -> str:
        """The text that can be shown now."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            _, start = min(found)
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when the sequence ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, shorter than the whole of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
