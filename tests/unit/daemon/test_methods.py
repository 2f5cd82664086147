"""Methods that the daemon answers itself wait no longer than their clients do, and keep nothing of them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from stand_ins import (
    Conversation,
    StandInBackend,
    StandInClock,
    StandInSource,
    a_store,
    an_entry,
    catalog_of,
    headers_by,
    looker_of,
)

from enclave.protocol import Error, Result, write_body
from enclave.protocol.bodies import LoadParams, UnloadParams, WhyParams
from enclaved.core.events import RequestArrived, RequestCancelled, Wish
from enclaved.core.ids import DeviceId, InstanceId
from enclaved.core.state import Device, Instance, State
from enclaved.core.story import Story
from enclaved.daemon import methods as answering
from enclaved.daemon.broker import Call
from enclaved.daemon.catalog import Folders
from enclaved.daemon.clock import SystemClock
from enclaved.daemon.conductor import Conductor
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.methods import OWN_BODY_BYTES_MAX, Identity, Methods
from enclaved.daemon.models import Models
from enclaved.daemon.needs import InstanceSettings
from enclaved.daemon.supervisor import Supervisor
from enclaved.plugin.model import ModelHeader

pytestmark = pytest.mark.asyncio

I1 = InstanceId("i1")
UNLOAD = write_body(UnloadParams(instance=I1))


class StandInHands(WorkerHands):
    """Whose instances go when the test says."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()
        self.waiting = 0
        self.taken: list[Call] = []

    async def wait_gone(self, instances: list[InstanceId]) -> None:
        self.waiting += 1
        self.begun.set()
        try:
            await self.gone.wait()
        finally:
            self.waiting -= 1

    def take(self, call: Call, model: object, priority: str) -> None:
        self.taken.append(call)


class StandInConductor(Conductor):
    """Keeps what it is told."""

    def __init__(self) -> None:
        cpu = Device(DeviceId("cpu"), 2**40, 2)
        super().__init__(State({cpu.id: cpu}), Story(), SystemClock(), cast("asyncio.TaskGroup", None))
        self.posted: list[Any] = []

    def post(self, event: Any) -> None:
        self.posted.append(event)


class Bench:
    """Methods over a catalog of one model, which i1 runs."""

    def __init__(self) -> None:
        entry = an_entry(name="m", backends=("x",), header=ModelHeader(format="x", architecture="y"))
        self.source = StandInSource("one", [entry])
        catalog = catalog_of(self.source, default="m")

        async def no_header(*_: Any) -> ModelHeader:
            raise AssertionError("the entry has its header")

        backends = {"x": StandInBackend("x")}
        models = Models(catalog, headers_by(no_header), backends, InstanceSettings(), device="cpu", cores=2)
        self.models = models
        self.hands = StandInHands()
        self.conductor = StandInConductor()
        self.clock = StandInClock()

        class Unused:
            def prepare(self, backend: str) -> None: ...

        store = a_store()
        looker = looker_of(store=store)
        self.methods = Methods(
            identity=Identity("ipc://nowhere", "/nowhere", "enclaved", 0.0),
            models=models,
            conductor=self.conductor,
            hands=self.hands,
            supervisor=cast("Supervisor", Unused()),
            looker=looker,
            folders=Folders(Path("/nowhere/folders.toml"), looker, store),
            plugins=(),
            clock=self.clock,
            sessions=lambda: 1,
            stop=lambda: None,
        )

    async def with_instance(self) -> None:
        need = await self.models.need(*(await self.models.choose("m", None)), Wish())
        self.conductor.state.instances[I1] = Instance(I1, need, "r")

    def asked(self, method: str, **fields: Any) -> tuple[Conversation, Call, asyncio.Task[None]]:
        """A call that is under way, as the broker has it done."""
        conversation = Conversation(name=method)
        call = conversation.another(**fields)
        work = self.methods.handle(call)
        assert work is not None
        return conversation, call, asyncio.ensure_future(work)


def _error(conversation: Conversation) -> Error:
    (error,) = conversation.of(Error)
    return error


@pytest.mark.parametrize("method", ["daemon.health", "instances.load", "instances.unload", "scheduler.why"])
async def test_a_body_above_the_bound_is_refused_unread(method: str) -> None:
    bench, conversation = Bench(), Conversation(name=method)
    call = conversation.another(body=b"\xc1" * (OWN_BODY_BYTES_MAX + 1))
    work = bench.methods.handle(call)
    if work is not None:
        await work
    error = _error(conversation)
    assert (error.code, error.field) == ("too_large", "body")
    assert error.numbers == {"size": OWN_BODY_BYTES_MAX + 1, "size_max": OWN_BODY_BYTES_MAX}
    assert call.request.body == b""


async def test_what_waits_for_an_unload_ends_with_its_cancel_and_keeps_no_body() -> None:
    bench = Bench()
    await bench.with_instance()
    conversation, call, task = bench.asked("instances.unload", body=UNLOAD)
    await bench.hands.begun.wait()
    assert call.request.body == b""
    call.cancel()
    await task
    assert (_error(conversation).code, bench.hands.waiting) == ("cancelled", 0)
    call.cancel()


async def test_what_waits_for_an_unload_ends_with_its_session() -> None:
    bench = Bench()
    await bench.with_instance()
    conversation, _, task = bench.asked("instances.unload", body=UNLOAD)
    await bench.hands.begun.wait()
    conversation.connection.leave()
    await task
    assert bench.hands.waiting == 0


async def test_a_call_that_was_cancelled_before_its_turn_does_nothing() -> None:
    bench = Bench()
    await bench.with_instance()
    conversation, call, task = bench.asked("instances.unload", body=UNLOAD)
    call.cancel()
    await task
    assert (_error(conversation).code, bench.conductor.posted) == ("cancelled", [])


async def test_a_deadline_counts_from_the_arrival() -> None:
    bench = Bench()
    await bench.with_instance()
    conversation, _, task = bench.asked("instances.unload", body=UNLOAD, deadline=1000.0)
    bench.clock.now += 1000.0
    await task
    error = _error(conversation)
    assert (error.code, error.retryable, error.numbers) == ("deadline", True, {"waited_seconds": 1000.0})


@pytest.mark.parametrize("method", ["generate", "instances.load"])
async def test_the_core_is_told_a_deadline_that_counts_from_the_arrival(method: str) -> None:
    bench = Bench()
    _, _, task = bench.asked(method, model="m", body=b"\x81\xa5model\xa1m", deadline=5.0)
    bench.clock.now += 1.0
    await task
    (arrived,) = bench.conductor.posted
    assert isinstance(arrived, RequestArrived)
    assert arrived.deadline_at == 105.0


async def test_a_request_that_is_cancelled_while_its_model_is_looked_up_never_reaches_the_core() -> None:
    bench, looking, may_find = Bench(), threading.Event(), threading.Event()

    def resolve(reference: str, context: object) -> None:
        looking.set()
        may_find.wait(60)

    vars(bench.source)["resolve"] = resolve
    conversation, call, task = bench.asked("generate", model="m")
    await asyncio.to_thread(looking.wait, 60)
    call.cancel()
    await task
    may_find.set()
    assert (_error(conversation).code, bench.conductor.posted, bench.hands.taken) == ("cancelled", [], [])


@pytest.mark.parametrize("method", ["generate", "instances.load"])
async def test_a_cancel_in_the_very_turn_in_which_its_model_is_found_is_not_lost(method: str) -> None:
    bench = Bench()
    need = await bench.models.need(*(await bench.models.choose("m", None)), Wish())
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    looking = asyncio.Event()

    async def find(*_: object) -> Any:
        looking.set()
        return await found

    vars(bench.models)["need"] = find
    body = write_body(LoadParams(model="m")) if method == "instances.load" else b""
    conversation, call, task = bench.asked(method, model="m", body=body)
    await looking.wait()
    found.set_result(need)
    call.cancel()
    await task
    assert (_error(conversation).code, bench.conductor.posted, bench.hands.taken) == ("cancelled", [], [])


async def test_what_is_wrong_in_a_body_is_named() -> None:
    bench = Bench()
    for method, body, field in [
        ("instances.load", b"\x81\xa5model\x07", "model"),
        ("scheduler.why", b"\x81\xa5limit\x00", "limit"),
        ("models.show", b"\xc1", "body"),
    ]:
        conversation, _, task = bench.asked(method, body=body)
        await task
        assert (_error(conversation).code, _error(conversation).field) == ("bad_request", field)


@pytest.mark.parametrize("method", ["models.show", "instances.load", "instances.unload"])
async def test_who_names_the_model_in_the_header_is_told_where_it_belongs(method: str) -> None:
    bench = Bench()
    conversation, _, task = bench.asked(method, model="m", body=b"\x80")
    await task
    error = _error(conversation)
    assert (error.code, error.field, "in the body" in error.message) == ("bad_request", "model", True)


async def test_one_story_is_told_at_a_time_and_none_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, telling, may_end = Bench(), threading.Semaphore(0), threading.Event()
    told = 0

    def why_body(*_: object) -> bytes:
        nonlocal told
        told += 1
        telling.release()
        may_end.wait(60)
        return b"\x80"

    monkeypatch.setattr(answering, "_why_body", why_body)
    first, first_call, first_task = bench.asked("scheduler.why", body=write_body(WhyParams(limit=1000)))
    await asyncio.to_thread(telling.acquire)
    others = [bench.asked("scheduler.why") for _ in range(20)]
    for _, call, _ in others[1:]:
        call.cancel()
    first_call.cancel()
    await asyncio.wait([task for _, _, task in others[1:]])
    assert told == 1
    may_end.set()
    await asyncio.wait([first_task, *(task for _, _, task in others)])
    assert told == 2
    assert _error(first).code == "cancelled"
    assert len(others[0][0].of(Result)) == 1


async def test_a_subscription_ends_with_its_deadline() -> None:
    bench = Bench()
    conversation, call, task = bench.asked("events.subscribe", body=b"\x81\xa6topics\x91\xa9instances", deadline=0.01)
    await task
    assert _error(conversation).code == "deadline"
    assert call.has_ended
    assert RequestCancelled not in map(type, bench.conductor.posted)
