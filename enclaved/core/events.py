"""What can happen, and what the core can ask for: the vocabulary of the closed circle.

Every action ends in an event: a `Load` in `InstanceReady` or `InstanceGone`, a `Launch`ed worker's death in
`InstanceGone`, an `Unload` in `InstanceGone`, a `Dispatch` in `LeaseReturned`. `Pause`, `Resume`, `Reject`, `Tell` and
`SetThreads` are told once and need no answer. `cause` is the id of whatever led here, so that one id leads from the
cause to everything that followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enclaved.core.ids import ClientId, DeviceId, InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason

Priority = Literal["interactive", "normal", "background"]


@dataclass(frozen=True)
class Wish:
    """What a request asks of the instance that will serve it; None: whatever is there will do."""

    context: int | None = None
    threads: int | None = None
    """Compute threads at most. This alone never asks for another load: threads change between steps."""
    sequences: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None


@dataclass(frozen=True)
class Need:
    """What one instance of a model takes, as its backend estimated it for a placement."""

    model: ModelKey
    device: DeviceId
    context: int
    sequences: int
    kv_type: str
    flash_attention: bool | None
    bytes_estimated: int
    threads_max: int = 1024
    """Compute threads that it has use for; more would only spin."""


@dataclass(frozen=True)
class RequestArrived:
    """A request wants a lease on an instance of a model (or, with `load_only`, only that it is loaded)."""

    cause: str
    request: RequestId
    client: ClientId
    need: Need
    wish: Wish
    priority: Priority = "normal"
    deadline_at: float | None = None
    load_only: bool = False
    asker: str = ""
    """Who asks, for people: a client's name, and what the system vouches for."""


@dataclass(frozen=True)
class RequestCancelled:
    """The client no longer wants the answer. Harmless when the request has ended already."""

    cause: str
    request: RequestId


@dataclass(frozen=True)
class LeasePaused:
    """The client of a dispatched request does not read what was made. The request keeps its lease, and gives up its
    sequence; `Pause` follows."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class LeaseResumed:
    """A paused request's client reads again. `Resume` follows when there is a sequence."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class LeaseReturned:
    """A dispatched request has ended, in whatever way: its instance is free of it."""

    cause: str
    request: RequestId
    instance: InstanceId
    charged_seconds: float = 0.0
    lost: Reason | None = None
    """Set when the request ended without an answer, because its worker did."""


@dataclass(frozen=True)
class InstanceReady:
    """A load has ended well."""

    cause: str
    instance: InstanceId
    bytes_measured: int
    sequences: int
    context: int


@dataclass(frozen=True)
class InstanceGone:
    """The worker's process has exited (or never started): its memory is free again."""

    cause: str
    instance: InstanceId
    reason: Reason


@dataclass(frozen=True)
class UnloadAsked:
    """A person wants a model out of memory; running requests finish first."""

    cause: str
    model: ModelKey


@dataclass(frozen=True)
class ShutdownAsked:
    """The daemon is to end: everything waiting is told so, everything running is cut short."""

    cause: str


@dataclass(frozen=True)
class Woken:
    """The time that the core asked to be woken at has come."""

    cause: str


Event = (
    RequestArrived
    | RequestCancelled
    | LeasePaused
    | LeaseResumed
    | LeaseReturned
    | InstanceReady
    | InstanceGone
    | UnloadAsked
    | ShutdownAsked
    | Woken
)


@dataclass(frozen=True)
class Load:
    """Start a worker and load the model into it."""

    cause: str
    instance: InstanceId
    need: Need
    threads: int


@dataclass(frozen=True)
class Unload:
    """End the worker. Also ends a load that is under way."""

    cause: str
    instance: InstanceId


@dataclass(frozen=True)
class Dispatch:
    """Hand the request to the instance; it holds a lease from now on."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class Pause:
    """Make nothing for a dispatched request until `Resume`. Who says both, in one order, is the core, so that what a
    worker was told last is what the core believes."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class Resume:
    """Let a paused request go on: it has a sequence again."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class CancelDispatched:
    """Ask the instance to stop working on the request; `LeaseReturned` follows."""

    cause: str
    request: RequestId
    instance: InstanceId
    reason: Reason


@dataclass(frozen=True)
class Reject:
    """Tell the client that its request has ended without a result."""

    cause: str
    request: RequestId
    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True)
class Accept:
    """Tell the client of a `load_only` request that its model is loaded."""

    cause: str
    request: RequestId
    instance: InstanceId


@dataclass(frozen=True)
class Tell:
    """Tell the client why its request waits."""

    cause: str
    request: RequestId
    stage: Literal["queued", "loading"]
    position: int
    """Requests of the same model that will be dispatched before it."""
    why: Literal["loading", "busy", "memory"]


@dataclass(frozen=True)
class SetThreads:
    """Grant an instance this many compute threads."""

    cause: str
    instance: InstanceId
    threads: int


Action = Load | Unload | Dispatch | Pause | Resume | CancelDispatched | Reject | Accept | Tell | SetThreads
