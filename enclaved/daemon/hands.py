"""Carries the core's actions out on real workers, and tells the clients what became of their calls."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from enclave.protocol.bodies import AskerInfo, InstanceInfo, LoadResult, MemoryInfo
from enclave.protocol.messages import ID_MAX, Progress, Result, Stage, attach
from enclave.protocol.methods import write_body
from enclaved.core.events import (
    Accept,
    CancelDispatched,
    Dispatch,
    Event,
    InstanceGone,
    InstanceReady,
    LeasePaused,
    LeaseResumed,
    LeaseReturned,
    Load,
    Pause,
    Reject,
    RequestCancelled,
    Resume,
    SetThreads,
    Tell,
    Unload,
)
from enclaved.core.ids import ClientId, InstanceId, ModelKey, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import State
from enclaved.daemon.broker import Call, Client, refusal_of
from enclaved.daemon.clock import Clock
from enclaved.daemon.models import KnownModel, Models, open_files
from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.reports import count_in, memory_in, numbers_in, refusal_in, seconds_in, walls_in
from enclaved.daemon.supervisor import (
    ChildEndedError,
    LoadRefusedError,
    Supervisor,
    WallsMissingError,
    Worker,
    WorkerDiedError,
    WorkerSettings,
)
from enclaved.link.messages import Failed, Finished, Loaded, Submit
from enclaved.link.messages import Load as LoadMessage
from enclaved.plugin.engine import Capabilities, MemoryUse, Placement
from enclaved.plugin.plain import from_plain, to_plain

logger = logging.getLogger("enclaved.hands")


PROGRESS_STEPS = 100
"""How often a prompt's progress is told at most."""
ASKERS_MAX = 64
"""Of an instance that are named; every change is told with them."""


@dataclass
class Pending:
    """A call that the core knows of and that has not ended."""

    call: Call
    known: KnownModel
    priority: str
    arrived_at: float
    dispatched_at: float | None = None
    ending: Reason | None = None
    """Why it is being cancelled."""
    returned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its dispatch is over."""


@dataclass
class Live:
    """An instance that has a process, or is about to."""

    load: Load
    known: KnownModel
    started_at: float
    worker: Worker | None = None
    memory: MemoryUse | None = None
    ready_at: float | None = None
    unwanted: bool = False
    """Whether its end was asked for."""
    threads: int = 0
    """Granted last, whether or not its worker has heard of it."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class WorkerHands:
    """The conductor's hands."""

    def __init__(
        self,
        models: Models,
        supervisor: Supervisor,
        settings: WorkerSettings,
        clock: Clock,
        post: Callable[[Event], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when an instance looks different although the core has decided nothing."""
        self._models = models
        self._supervisor = supervisor
        self._settings = settings
        self._clock = clock
        self._post = post
        self._changed = changed
        self._pending: dict[RequestId, Pending] = {}
        self._live: dict[InstanceId, Live] = {}
        self._loaded: set[ModelKey] = set()
        """Models that were ready once."""

    def take(self, call: Call, model: ModelKey, priority: str) -> None:
        """Takes a call over, just before the core hears of it; from now on its end is told from here."""
        self._pending[call.id] = Pending(call, self._models.known(model), priority, self._clock.monotonic())
        in_use = {pending.known.key for pending in self._pending.values()}
        self._models.forget_but(in_use | {live.known.key for live in self._live.values()})
        call.on_cancel = lambda: self._post(RequestCancelled(call.id, call.id))

    async def wait_gone(self, instances: list[InstanceId]) -> None:
        """Waits until the processes of these instances have exited."""
        for live in [self._live[instance] for instance in instances if instance in self._live]:
            await live.gone.wait()

    # --- the conductor's actions ---

    async def live(self, action: Load) -> InstanceGone:
        known = self._models.known(action.need.model)
        live = Live(action, known, self._clock.monotonic(), threads=action.threads)
        self._live[action.instance] = live
        try:
            reason = await self._live_and_die(live)
        finally:
            del self._live[action.instance]
            live.gone.set()
        logger.info("instance %s of %s is gone: %s", action.instance, action.need.model, reason.why.value)
        return InstanceGone(action.cause, action.instance, reason)

    async def unload(self, action: Unload) -> None:
        live = self._live.get(action.instance)
        if live is not None:
            live.unwanted = True
            if live.worker is not None:
                await self._supervisor.give_back(live.worker)

    async def dispatch(self, action: Dispatch) -> LeaseReturned:
        pending = self._pending.get(action.request)
        if pending is None:
            # Its instance was gone before this was carried out, and it has been told so.
            return LeaseReturned(action.cause, action.request, action.instance)
        pending.dispatched_at = self._clock.monotonic()
        call, live = pending.call, self._live.get(action.instance)
        charged_seconds = 0.0
        lost: Reason | None = None
        try:
            if live is None or live.worker is None:
                lost = Reason(Why.WORKER_DIED)
            else:
                worker = live.worker
                call.on_pause = lambda: self._post(LeasePaused(call.id, action.request, action.instance))
                call.on_resume = lambda: self._post(LeaseResumed(call.id, action.request, action.instance))
                outcome = await worker.run(_submit(pending), _AnswerStream(call, worker))
                charged_seconds = self._answer(pending, live, action.instance, outcome)
        except WorkerDiedError as died:
            lost = Reason(Why.WORKER_DIED, detail=_words(died.message, died.tail))
        finally:
            pending.returned.set()
        if lost is None:
            # A lost one stays: the core rejects it, and only then its client is told.
            self._pending.pop(action.request, None)
        return LeaseReturned(action.cause, action.request, action.instance, charged_seconds, lost)

    async def cancel(self, action: CancelDispatched) -> None:
        pending, live = self._pending.get(action.request), self._live.get(action.instance)
        if pending is None or live is None or live.worker is None:
            return
        pending.ending = action.reason
        live.worker.cancel(action.request)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.cancel_seconds_max):
                await pending.returned.wait()
                return
        logger.warning("worker %d did not give a request up and was ended", live.worker.child.pid)
        live.worker.child.kill()

    def pause(self, action: Pause) -> None:
        live = self._live.get(action.instance)
        if live is not None and live.worker is not None:
            live.worker.pause(action.request)

    def resume(self, action: Resume) -> None:
        live = self._live.get(action.instance)
        if live is not None and live.worker is not None:
            live.worker.resume(action.request)

    def reject(self, action: Reject) -> None:
        pending = self._pending.pop(action.request, None)
        if pending is None:
            return
        refusal = refusal_of(action.reason, action.retry_after)
        if action.reason.why not in (Why.CANCELLED, Why.SHUTTING_DOWN, Why.DEADLINE):
            refusal.message = f"{pending.known.entry.name}: {refusal.message}"
        pending.call.error(refusal)

    def accept(self, action: Accept) -> None:
        pending = self._pending.pop(action.request, None)
        live = self._live.get(action.instance)
        if pending is None:
            return
        if live is None:
            pending.call.error(refusal_of(Reason(Why.WORKER_DIED)))
            return
        already = live.ready_at is not None and live.ready_at <= pending.arrived_at
        result = LoadResult(instance=self._info(action.instance, live, "ready", "loaded"), already_loaded=already)
        pending.call.result(
            Result(id=pending.call.request.id, **self._receipt(pending, live, action.instance), body=write_body(result))
        )

    def tell(self, action: Tell) -> None:
        pending = self._pending.get(action.request)
        if pending is not None:
            stage = Stage.LOADING if action.stage == "loading" else Stage.QUEUED
            call = pending.call
            call.progress(
                Progress(
                    id=call.request.id,
                    stage=stage,
                    position=action.position + 1,
                    ahead=action.position,
                    reason=action.why,
                )
            )

    def set_threads(self, action: SetThreads) -> None:
        live = self._live.get(action.instance)
        if live is not None:
            live.threads = action.threads
            if live.worker is not None:
                live.worker.set_threads(action.threads)

    # --- what people see ---

    def instances(self, state: State) -> list[InstanceInfo]:
        """Every instance, as `instances.list` tells it."""
        infos: list[InstanceInfo] = []
        for instance in state.instances.values():
            live = self._live.get(instance.id)
            if live is not None:
                infos.append(
                    self._info(
                        instance.id,
                        live,
                        instance.phase.value,
                        instance.wanted.value,
                        leases=len(instance.leases),
                        paused=len(instance.paused),
                        queued=sum(1 for r in state.waiting() if r.model == instance.need.model),
                        threads=instance.threads,
                        context=instance.context or instance.need.context,
                        sequences=instance.sequences or instance.need.sequences,
                        askers=self._askers(state, instance.need.model),
                    )
                )
        return infos

    def _info(
        self,
        instance: InstanceId,
        live: Live,
        phase: str,
        wanted: str,
        *,
        leases: int = 0,
        paused: int = 0,
        queued: int = 0,
        threads: int | None = None,
        context: int | None = None,
        sequences: int | None = None,
        askers: tuple[AskerInfo, ...] = (),
    ) -> InstanceInfo:
        need, memory = live.load.need, live.memory
        child = live.worker.child if live.worker is not None else None
        return InstanceInfo(
            id=instance,
            model=live.known.entry.name,
            state=phase,
            wanted=wanted,
            backend=live.known.backend.name,
            device=need.device,
            pid=child.pid if child is not None else None,
            memory=MemoryInfo(
                estimated_bytes=need.bytes_estimated,
                measured_bytes=live.known.backend.process_bytes + memory.total_bytes if memory is not None else None,
                weights=memory.weights_bytes if memory is not None else None,
                repacked=memory.repacked_bytes if memory is not None else None,
                kv=memory.kv_bytes if memory is not None else None,
                compute=memory.compute_bytes if memory is not None else None,
                devices=dict(memory.devices) if memory is not None else None,
            ),
            leases=leases,
            paused=paused,
            queued=queued,
            threads=threads or live.threads,
            context=context or need.context,
            sequences=sequences or need.sequences,
            loaded_seconds=self._clock.monotonic() - live.ready_at if live.ready_at is not None else None,
            walls=walls_in(child.walls) if child is not None and child.walls else None,
            askers=askers,
        )

    def _askers(self, state: State, model: ModelKey) -> tuple[AskerInfo, ...]:
        """Whose requests run on a model or wait for it, in the order in which they first asked, ASKERS_MAX at most."""
        counts: dict[ClientId, tuple[Client, int, int]] = {}
        for request in state.requests.values():
            pending = self._pending.get(request.id)
            if request.model == model and pending is not None:
                client, running, queued = counts.get(request.client, (pending.call.client, 0, 0))
                runs = request.instance is not None
                counts[request.client] = (client, running + runs, queued + (not runs))
        return tuple(
            AskerInfo(
                session=session,
                name=client.name,
                pid=client.pid,
                program=client.program,
                running=running,
                queued=queued,
            )
            for session, (client, running, queued) in islice(counts.items(), ASKERS_MAX)
        )

    # --- inside ---

    async def _live_and_die(self, live: Live) -> Reason:
        backend = live.known.backend
        try:
            worker = await self._supervisor.worker(backend.name)
        except ChildEndedError as ended:
            return Reason(Why.LAUNCH_FAILED, detail=_words(ended.message, ended.tail))
        except WallsMissingError as missing:
            return Reason(Why.WALLS_MISSING, detail=str(missing))
        except OSError as error:
            return Reason(Why.LAUNCH_FAILED, detail=str(error))
        live.worker = worker
        self._changed()
        try:
            return await self._load_and_wait(live, worker)
        finally:
            await self._supervisor.give_back(worker)

    async def _load_and_wait(self, live: Live, worker: Worker) -> Reason:
        if live.unwanted:
            return Reason(Why.UNLOADED)
        try:
            async with asyncio.timeout(self._settings.load_seconds_max):
                loaded = await self._load(live, worker)
            capabilities = from_plain(Capabilities, loaded.capabilities)
            live.memory = memory_in(loaded)
        except LoadRefusedError as refused:
            why = Why.LOAD_OUT_OF_MEMORY if refused.out_of_memory else Why.LOAD_FAILED
            return Reason(why, detail=refused.message)
        except RefusalError as refusal:
            return Reason(Why.LOAD_FAILED, detail=refusal.message)
        except WorkerDiedError as died:
            if live.unwanted:
                return Reason(Why.UNLOADED)
            return Reason(Why.DIED_LOADING, detail=_words(died.message, died.tail))
        except TimeoutError:
            return Reason(Why.TIMED_OUT)
        except ValueError as error:
            return Reason(Why.LOAD_FAILED, detail=f"the backend's report makes no sense: {error}")
        live.ready_at = self._clock.monotonic()
        load = live.load
        self._loaded.add(load.need.model)
        held_bytes = live.known.backend.process_bytes + live.memory.total_bytes
        self._models.measured(load.need, held_bytes)
        self._post(
            InstanceReady(
                load.cause,
                load.instance,
                held_bytes,
                # A worker may do with less than it was granted, never with more.
                max(1, min(capabilities.sequences, load.need.sequences)),
                max(1, min(capabilities.context, load.need.context)),
            )
        )
        self._supervisor.was_used(live.known.backend.name)
        ended = await worker.child.wait_exited()
        if live.unwanted:
            return Reason(Why.UNLOADED)
        return Reason(Why.WORKER_DIED, detail=_words(ended.message, ended.tail))

    async def _load(self, live: Live, worker: Worker) -> Loaded:
        known, need = live.known, live.load.need
        placement = Placement(
            device=need.device,
            context=need.context,
            sequences=need.sequences,
            threads=live.threads,
            kv_type=need.kv_type,  # pyright: ignore[reportArgumentType] - it came from a placement
            flash_attention=need.flash_attention,
        )
        files = open_files(known.entry, known.identity)
        try:
            message = LoadMessage(
                model=known.entry.name,
                engine=known.backend.engine,
                files=[[role, name, size] for role, name, _, size in files],
                header=to_plain(known.header),
                placement=to_plain(placement),
                settings=dict(known.entry.settings),
                reloaded=need.model in self._loaded,
            )
            loading = worker.load(
                message,
                [descriptor for _, _, descriptor, _ in files],
                lambda fraction: self._load_progressed(need.model, fraction),
            )
            return await loading
        finally:
            for _, _, descriptor, _ in files:
                os.close(descriptor)

    def _load_progressed(self, model: ModelKey, fraction: float) -> None:
        for pending in self._pending.values():
            if pending.known.key == model and pending.dispatched_at is None:
                call = pending.call
                call.progress(Progress(id=call.request.id, stage=Stage.LOADING, fraction=fraction))

    def _answer(self, pending: Pending, live: Live, instance: InstanceId, outcome: Finished | Failed) -> float:
        call = pending.call
        now = self._clock.monotonic()
        seconds_max = now - (pending.dispatched_at or now)
        if isinstance(outcome, Failed):
            if pending.ending is not None and outcome.code == "cancelled":
                refusal = refusal_of(pending.ending)
                # What it has cost until then.
                refusal.numbers |= numbers_in(outcome)
            else:
                refusal = refusal_in(outcome, live.known, live.load.need.context)
            call.error(refusal)
            return seconds_in(outcome.numbers, "charged_seconds", seconds_max)
        charged_seconds = seconds_in(outcome.header, "charged_seconds", seconds_max)
        infos, frames = attach(cast("list[tuple[str, bytes]]", outcome.attachments))
        call.result(
            Result(
                id=call.request.id,
                **self._receipt(pending, live, instance),
                charged_seconds=charged_seconds,
                prompt_seconds=seconds_in(outcome.header, "prompt_seconds", seconds_max),
                decoding_seconds=seconds_in(outcome.header, "decoding_seconds", seconds_max),
                preempted=count_in(outcome.header, "preempted"),
                body=outcome.body,
                attachments=infos,
                frames=frames,
            )
        )
        return charged_seconds

    def _receipt(self, pending: Pending, live: Live, instance: InstanceId) -> dict[str, Any]:
        """What a result's header says of who answered and of the waiting before."""
        dispatched_at = pending.dispatched_at or self._clock.monotonic()
        loading_seconds = 0.0
        if live.ready_at is not None and live.ready_at > pending.arrived_at:
            loading_seconds = live.ready_at - max(live.started_at, pending.arrived_at)
        return {
            "model": live.known.entry.name,
            "model_hash": live.known.hash,
            "backend": live.known.backend.name,
            "device": live.load.need.device,
            "instance": instance,
            "queued_seconds": max(0.0, dispatched_at - pending.arrived_at - loading_seconds),
            "loading_seconds": loading_seconds,
            "context": live.load.need.context,
        }


class _AnswerStream:
    """A worker's words about a request, on their way to its client, who must not drown in them."""

    def __init__(self, call: Call, worker: Worker) -> None:
        self._call = call
        self._worker = worker
        self._total: int | None = None
        self._tell_from = 0
        """What has to be done before it is worth telling again."""

    def measured(self, prompt_tokens: int, cached_tokens: int) -> None:
        if self._total is None and 0 <= cached_tokens <= prompt_tokens <= ID_MAX:
            self._total = prompt_tokens
            self.prompted(cached_tokens, prompt_tokens)

    def prompted(self, done: int, total: int) -> None:
        if total == self._total and self._tell_from <= done <= total:
            self._tell_from = done + 1 + total // PROGRESS_STEPS
            self._call.progress(Progress(id=self._call.request.id, stage=Stage.PROMPT, done=done, total=total))

    def chunk(self, body: bytes, count: int) -> None:
        self._call.chunk(body, count)
        if self._call.is_flooded:
            logger.warning("worker %d did not pause a request and was ended", self._worker.child.pid)
            self._worker.child.kill()


def _submit(pending: Pending) -> Submit:
    request = pending.call.request
    return Submit(
        request=pending.call.id,
        method=request.method,
        max_tokens=request.max_tokens,
        choices=request.choices,
        priority=pending.priority,
        body=pending.call.take_body(),
    )


def _words(message: str, tail: str) -> str:
    return f"{message}\n{tail}" if tail else message
