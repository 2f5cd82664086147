"""What workers report, believed only as far as it makes sense: a hostile model may have taken one over."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import cast

from enclave.protocol.bodies import WallsInfo
from enclave.protocol.errors import CLIENT_SIDE_CODES, ERROR_CODES, Number
from enclave.protocol.messages import COUNT_MAX
from enclaved.daemon.models import KnownModel
from enclaved.daemon.refusal import RefusalError
from enclaved.link.messages import Failed, Loaded
from enclaved.plugin.engine import MemoryUse
from enclaved.plugin.plain import from_plain

BYTES_MAX = 2**50
"""A PiB: what a worker reports above it is no measurement."""
DEVICES_MAX = 64
DEVICE_NAME_MAX = 64
NUMBERS_MAX = 16
"""Figures beside a worker's error."""
CODES_OF_OURS = CLIENT_SIDE_CODES | frozenset(
    {
        "backing_off",
        "bad_message",
        "busy",
        "deadline",
        "shutting_down",
        "unauthorised",
        "unknown_method",
        "version_mismatch",
        "worker_died",
    }
)
"""Codes about the daemon or the session, which no worker can know of."""


def refusal_in(failed: Failed, known: KnownModel, context: int) -> RefusalError:
    """The error that a worker ended a request with, on an instance with so much `context`."""
    trained = known.header.context_length or 0
    hint = None
    if failed.code == "context_exceeded":
        hint = f"Shorten the prompt; this model was trained for {trained:,} tokens."
        if trained > context:
            hint = f"Shorten the prompt, or ask for more context (--context), up to {trained:,}."
    return RefusalError(
        failed.code if failed.code in ERROR_CODES and failed.code not in CODES_OF_OURS else "internal",
        f"{known.entry.name}: {failed.message}" if failed.code == "internal" else failed.message,
        hint=hint,
        numbers=numbers_in(failed),
        field=failed.field,
        detail=failed.body.decode("utf-8", "replace"),
    )


def numbers_in(failed: Failed) -> dict[str, Number]:
    """The figures that a worker gives with an error."""
    numbers: dict[str, Number] = {
        key: value
        for key, value in failed.numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and len(key) <= 64
    }
    return dict(list(numbers.items())[:NUMBERS_MAX])


def count_in(header: Mapping[str, object], name: str) -> int:
    """How often something happened, as a worker says."""
    value = header.get(name)
    return min(value, COUNT_MAX) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def seconds_in(header: Mapping[str, object], name: str, seconds_max: float) -> float:
    """What a worker says of its time, which is no more than has passed."""
    value = header.get(name)
    return min(float(value), seconds_max) if isinstance(value, (int, float)) and value >= 0 else 0.0


def memory_in(loaded: Loaded) -> MemoryUse:
    """What a worker measured. Raises ValueError when it cannot have."""
    memory = from_plain(MemoryUse, loaded.memory)
    for name in ("weights_bytes", "kv_bytes", "compute_bytes", "repacked_bytes", "other_bytes"):
        if not 0 <= getattr(memory, name) <= BYTES_MAX:
            raise ValueError(f"{name} is {getattr(memory, name)}")
    if len(memory.devices) > DEVICES_MAX:
        raise ValueError(f"devices are {len(memory.devices)}")
    for name, nbytes in memory.devices.items():
        if len(name) > DEVICE_NAME_MAX or not 0 <= nbytes <= BYTES_MAX:
            raise ValueError(f"devices[{name[:DEVICE_NAME_MAX]!r}] is {nbytes}")
    return memory


def walls_in(walls: Mapping[str, object]) -> WallsInfo:
    """What a child says of its walls, which the kernel has confirmed as far as it can."""
    missing, abi = walls.get("missing"), walls.get("landlock_abi")
    return WallsInfo(
        state=str(walls.get("state", "none")),
        landlock_abi=abi if isinstance(abi, int) else None,
        seccomp=walls.get("seccomp") is True,
        missing=tuple(map(str, cast("list[object]", missing))) if isinstance(missing, list) else (),
    )
