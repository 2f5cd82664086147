"""How fast this machine runs this model, as its latest steps showed. Pure: durations in, predictions out.

A chunk of a prompt takes longer the more context lies before it and the busier the machine is, so the newest
measurements count most.
"""

from __future__ import annotations

from dataclasses import dataclass

NEWEST_SHARE = 0.5
"""How much of an estimate is its newest measurement."""
SMALL_CHUNK_COST = 2.0
"""What a token of a chunk below the efficient size costs against one above, until it is measured."""


@dataclass
class Pace:
    """Seconds that steps take. `chunk_tokens`: from how many tokens on a chunk is efficient."""

    chunk_tokens: int
    decode_seconds: float = 0.0
    """Of one call that takes each running sequence a token further; 0 until measured."""
    _token_seconds: float | None = None
    """Of one token in a chunk of the efficient size."""
    _small_token_seconds: float | None = None

    def decoded(self, seconds: float) -> None:
        """A call of decoding tokens took so long."""
        self.decode_seconds = _blended(self.decode_seconds or None, seconds)

    def evaluated(self, tokens: int, seconds: float) -> None:
        """A chunk of a prompt took so long."""
        if tokens >= self.chunk_tokens:
            self._token_seconds = _blended(self._token_seconds, seconds / tokens)
        elif tokens * 4 >= self.chunk_tokens:
            # A handful of tokens costs as much as a decoding step, and says nothing of a chunk.
            self._small_token_seconds = _blended(self._small_token_seconds, seconds / tokens)

    @property
    def is_known(self) -> bool:
        """Whether a chunk has been measured."""
        return self._token_seconds is not None or self._small_token_seconds is not None

    def chunk_seconds(self, tokens: int) -> float:
        """What a chunk will take; 0 when nothing has been measured."""
        large, small = self._token_seconds, self._small_token_seconds
        if large is None:
            large = 0.0 if small is None else small / SMALL_CHUNK_COST
        if small is None:
            small = large * SMALL_CHUNK_COST
        return tokens * (large if tokens >= self.chunk_tokens else small)


def _blended(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + NEWEST_SHARE * (seconds - before)
