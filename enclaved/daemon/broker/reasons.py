"""One table from the core's reasons to the protocol's codes, with what a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from enclave.protocol.errors import Number
from enclaved.core.reasons import Reason, Why
from enclaved.daemon.refusal import RefusalError


@dataclass(frozen=True)
class Row:
    """What a reason becomes. `message` may name the reason's numbers in braces."""

    code: str
    message: str
    hint: str | None = None
    """None: the hint of the code's own row."""


REASONS: Mapping[Why, Row] = {
    Why.CANCELLED: Row("cancelled", "The request was cancelled."),
    Why.DEADLINE: Row("deadline", "The request's deadline passed before it was done."),
    Why.QUEUE_FULL: Row("busy", "{queued} requests are waiting already, as many as may."),
    Why.TOO_LARGE_FOR_MEMORY: Row(
        "out_of_memory",
        "The model needs {needed} with a context of {context}, and models may take {limit} in all.",
        "Ask for a smaller context, choose a smaller model, or raise memory.limit_bytes in the configuration.",
    ),
    Why.LOAD_FAILED: Row("load_failed", "The backend could not load the model."),
    Why.LOAD_OUT_OF_MEMORY: Row("out_of_memory", "Memory ran out while the model was being loaded."),
    Why.LAUNCH_FAILED: Row("internal", "The worker could not be started."),
    Why.WALLS_MISSING: Row(
        "internal",
        "The worker is not behind its walls, so it was not given the model.",
        "`enclave ps --json` tells which walls stand; the log has the details.",
    ),
    Why.WORKER_DIED: Row("worker_died", "The process that ran the model ended."),
    Why.DIED_LOADING: Row(
        "load_failed",
        "The process that was loading the model ended.",
        "The file is probably damaged or hostile; the detail holds the process's last words.",
    ),
    Why.TOOK_TOO_MUCH: Row(
        "out_of_memory",
        "Once loaded, the model held {needed} with a context of {context}, and models may take {limit} in all.",
        "Ask for a smaller context, choose a smaller model, or raise memory.limit_bytes in the configuration.",
    ),
    Why.BACKING_OFF: Row("backing_off", "The model's worker died {deaths} times in a row; the daemon waits a moment."),
    Why.UNLOADED: Row(
        "cancelled", "The model was unloaded while the request waited for it.", "Ask again: the model is loaded anew."
    ),
    Why.SHUTTING_DOWN: Row("shutting_down", "The daemon is about to end."),
    Why.TIMED_OUT: Row("load_failed", "The load took longer than workers.load_seconds_max and was given up."),
    Why.FAILED_INSIDE: Row("internal", "The daemon met a defect of its own."),
}


def refusal_of(reason: Reason, retry_after: float | None = None) -> RefusalError:
    """The error that tells a client of a reason."""
    row = REASONS.get(reason.why, REASONS[Why.FAILED_INSIDE])
    shown = dict(reason.numbers)
    for name in ("needed", "limit"):
        if isinstance(size := shown.get(f"{name}_bytes"), int):
            shown[name] = _size(size)
    numbers: dict[str, Number] = {
        key: value for key, value in reason.numbers.items() if isinstance(value, (int, float))
    }
    return RefusalError(
        row.code,
        row.message.format_map(_Known(shown)),
        hint=_retry_hint(retry_after) if retry_after is not None else row.hint,
        numbers=numbers,
        retry_after=retry_after,
        detail=reason.detail,
    )


def _size(size_bytes: int) -> str:
    unit, name = next(
        ((unit, name) for unit, name in ((2**30, "GiB"), (2**20, "MiB")) if size_bytes >= unit), (2**10, "KiB")
    )
    return f"{size_bytes / unit:,.1f} {name}"


def _retry_hint(retry_after: float) -> str:
    return f"Try again in {max(1, ceil(retry_after))} s; `enclave why` tells what happened."


class _Known(dict[str, object]):
    """Numbers for a message; one that a reason lacks shows as a question mark instead of failing the answer."""

    def __missing__(self, key: str) -> str:
        return "?"
