"""Why the core said no, or not yet: an enum with data. The broker turns each into code, message and hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Number = int | float | str


class Why(Enum):
    """The reasons the core ends a request for, or an instance dies of."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    QUEUE_FULL = "queue_full"
    TOO_LARGE_FOR_MEMORY = "too_large_for_memory"
    LOAD_FAILED = "load_failed"
    LOAD_OUT_OF_MEMORY = "load_out_of_memory"
    LAUNCH_FAILED = "launch_failed"
    WALLS_MISSING = "walls_missing"
    WORKER_DIED = "worker_died"
    DIED_LOADING = "died_loading"
    """The worker died before the model was loaded: most likely of the model's file."""
    TOOK_TOO_MUCH = "took_too_much"
    """Once loaded, the model turned out to hold more memory than its device has."""
    BACKING_OFF = "backing_off"
    UNLOADED = "unloaded"
    SHUTTING_DOWN = "shutting_down"
    TIMED_OUT = "timed_out"
    """An action did not end within its deadline."""
    FAILED_INSIDE = "failed_inside"
    """An action ended in an error of our own."""


@dataclass(frozen=True)
class Reason:
    """A reason and the figures a person needs to act on it."""

    why: Why
    numbers: Mapping[str, Number] = field(default_factory=dict[str, Number])
    detail: str = ""
    """Text that came from a worker or a model; it leaves the daemon in error bodies only and never enters the story."""
