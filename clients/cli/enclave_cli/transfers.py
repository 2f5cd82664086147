"""How far a transfer is, how fast it goes and when it will be done, as one short sentence."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from enclave_cli.output import duration, size
from enclave_cli.progress import sentence

if TYPE_CHECKING:
    from enclave.protocol.messages import Progress

WINDOW_SECONDS = 10.0
"""The rate is that of the last few seconds: long enough to be steady, short enough to follow the network."""
_MEASURED_SECONDS_MIN = 0.5
"""A rate over less than that says more of how messages were cut than of the network."""


class Transfer:
    """Remembers what has come in the last few seconds."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        """(when, bytes that were there then)."""

    def sentence(self, progress: Progress) -> str:
        """`fetching hf:a/b: 1.2 GiB of 4.0 GiB, 12.3 MiB/s, 3 min 05 s left`; while it waits, for what."""
        if str(progress.stage) != "transfer":
            return sentence(progress, self._name)
        said = f"fetching {self._name}"
        if progress.done is None:
            return said
        said += f": {size(progress.done)}" + (f" of {size(progress.total)}" if progress.total else "")
        bytes_a_second = self._rate(progress.done)
        if bytes_a_second <= 0:
            return said
        said += f", {size(round(bytes_a_second))}/s"
        left = (progress.total or 0) - progress.done
        return f"{said}, {duration(left / bytes_a_second)} left" if left > 0 else said

    def _rate(self, done: int) -> float:
        """Bytes a second; 0 while it is not known."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # it has begun anew
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_SECONDS:
            self._seen.popleft()
        began, had = self._seen[0]
        return (done - had) / (now - began) if now - began >= _MEASURED_SECONDS_MIN else 0.0
