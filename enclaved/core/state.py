"""Everything the core knows: devices, instances, requests, back-offs. Only the core's own modules change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from enclaved.core.events import Need, Priority, Tell, Wish
from enclaved.core.ids import ClientId, DeviceId, InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason


@dataclass(frozen=True)
class Limits:
    """The bounds the core keeps."""

    queued_per_client_max: int = 256
    """As many as a session may have open: who asks for many answers at once is not refused for that alone."""
    queued_max: int = 512
    deaths_before_back_off: int = 2
    """Deaths in a row, without a request served in between, from which on the model is backed off."""
    back_off_seconds: float = 2.0
    """The first pause; it doubles with each further death."""
    back_off_seconds_max: float = 60.0


@dataclass(frozen=True)
class Device:
    """Memory and compute that can be handed out."""

    id: DeviceId
    capacity_bytes: int
    cores: int


class Phase(Enum):
    """What an instance is."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


class Wanted(Enum):
    """What an instance is to become."""

    LOADED = "loaded"
    UNLOADED = "unloaded"


@dataclass
class Instance:
    """A worker and its model, as the core sees them."""

    id: InstanceId
    need: Need
    cause: str
    """What last changed what it is to become: the request that it was loaded for, or whatever makes it leave."""
    phase: Phase = Phase.LOADING
    wanted: Wanted = Wanted.LOADED
    makes_way_for: ModelKey | None = None
    """The model whose waiting request makes it leave: another's, which needs the room, or its own, which needs other
    settings. None: it stays, or a person, a failure or the daemon's end makes it leave."""
    failed: Reason | None = None
    """Set when a lease was lost to it: its worker is dead or hangs, whatever its end will be called."""
    # Invariant: holds exactly the running requests whose `instance` is this one; empty unless READY.
    leases: set[RequestId] = field(default_factory=set[RequestId])
    # Invariant: a part of the leases.
    paused: set[RequestId] = field(default_factory=set[RequestId])
    """Those for which nothing is made for now; they take no sequence."""
    bytes_measured: int | None = None
    sequences: int = 0
    context: int = 0
    threads: int = 0
    used_at: float = 0.0
    """When a request last came to or left it."""

    def leave(self, cause: str, makes_way_for: ModelKey | None = None) -> None:
        """Wants it gone. It takes no new request from now on, and ends when it holds no lease."""
        self.wanted = Wanted.UNLOADED
        self.cause = cause
        self.makes_way_for = makes_way_for

    @property
    def bytes_booked(self) -> int:
        """What the ledger holds for it: the estimate, or the measurement where that is more."""
        return max(self.need.bytes_estimated, self.bytes_measured or 0)

    @property
    def takes_requests(self) -> bool:
        return self.phase is Phase.READY and self.wanted is Wanted.LOADED

    @property
    def sequences_used(self) -> int:
        return len(self.leases) - len(self.paused)

    @property
    def is_busy(self) -> bool:
        """Whether it needs cores now."""
        return self.phase is Phase.LOADING or self.sequences_used > 0


@dataclass
class Request:
    """A request that has not ended. `instance` is None while it waits."""

    id: RequestId
    client: ClientId
    need: Need
    wish: Wish
    priority: Priority
    arrived_at: float
    cause: str
    deadline_at: float | None = None
    load_only: bool = False
    instance: InstanceId | None = None
    wants_resume: bool = False
    """Whether it is paused and its client reads again."""
    told: Tell | None = None
    """What its client was last told."""
    cancelled_for: Reason | None = None
    """Why its instance was asked to stop working on it."""

    @property
    def being_cancelled(self) -> bool:
        return self.cancelled_for is not None

    @property
    def model(self) -> ModelKey:
        return self.need.model


@dataclass
class Deaths:
    """How often in a row a model's worker has died, and until when it rests."""

    count: int
    until: float


@dataclass
class State:
    """The whole state. Iteration orders are insertion orders, so equal events give equal actions."""

    devices: dict[DeviceId, Device]
    limits: Limits = field(default_factory=Limits)
    # Invariant: at most one instance of each model, the leaving ones included.
    instances: dict[InstanceId, Instance] = field(default_factory=dict[InstanceId, Instance])
    requests: dict[RequestId, Request] = field(default_factory=dict[RequestId, Request])
    deaths: dict[ModelKey, Deaths] = field(default_factory=dict[ModelKey, Deaths])
    last_reasons: dict[ModelKey, Reason] = field(default_factory=dict[ModelKey, Reason])
    """Why each model of `deaths` died last."""
    shutting_down: bool = False
    instances_made: int = 0

    def waiting(self) -> list[Request]:
        """Requests without an instance, in order of arrival."""
        return [request for request in self.requests.values() if request.instance is None]

    def instance_of(self, model: ModelKey) -> Instance | None:
        """The one instance of a model, whatever its phase; None when there is none at all."""
        return next((instance for instance in self.instances.values() if instance.need.model == model), None)

    def is_waited_for(self, model: ModelKey) -> bool:
        """Whether a request waits for the model."""
        return any(request.model == model for request in self.waiting())
