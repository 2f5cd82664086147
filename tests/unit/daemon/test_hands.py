"""The hands with hostile and dying workers: each call ends exactly once, and no worker is believed too far."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from stand_ins import (
    Conversation,
    StandInBackend,
    StandInChild,
    StandInSource,
    a_worker,
    an_entry,
    catalog_of,
    headers_by,
)

from enclave.protocol.errors import ERROR_CODES
from enclave.protocol.messages import NAME_LENGTH_MAX, Error, Progress, Result
from enclave.protocol.messages import Chunk as ChunkMessage
from enclaved.core.events import (
    Accept,
    CancelDispatched,
    Dispatch,
    Event,
    InstanceGone,
    InstanceReady,
    LeaseReturned,
    Load,
    Reject,
    RequestArrived,
    RequestCancelled,
    Unload,
    Wish,
)
from enclaved.core.ids import DeviceId, InstanceId, RequestId
from enclaved.core.reasons import Reason, Why
from enclaved.core.state import Device, Instance, State
from enclaved.core.state import Request as WaitingRequest
from enclaved.core.story import Story
from enclaved.daemon.clock import SystemClock
from enclaved.daemon.conductor import Conductor
from enclaved.daemon.hands import ASKERS_MAX, WorkerHands
from enclaved.daemon.models import Models
from enclaved.daemon.needs import InstanceSettings
from enclaved.daemon.reports import CODES_OF_OURS
from enclaved.daemon.supervisor import Supervisor, Worker, WorkerSettings
from enclaved.daemon.supervisor.child import ChildEndedError
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    Measured,
    Pause,
    Prompted,
    Resume,
    Submit,
)
from enclaved.plugin.engine import Capabilities, MemoryUse
from enclaved.plugin.hookspecs import Backend
from enclaved.plugin.model import ModelHeader
from enclaved.plugin.plain import to_plain

pytestmark = pytest.mark.asyncio

I1 = InstanceId("i1")
LOADED = Loaded(
    to_plain(MemoryUse(weights_bytes=5)), to_plain(Capabilities(sequences=2, context=100, batch_tokens=8)), 0.1
)


class StandInSupervisor:
    """Lends stand-ins, when the test lets it."""

    def __init__(self) -> None:
        self.child = StandInChild(77)
        self.may_launch = asyncio.Event()
        self.may_launch.set()
        self.failure: Exception | None = None
        self.used: list[str] = []

    async def worker(self, backend: str) -> Worker:
        await self.may_launch.wait()
        if self.failure is not None:
            raise self.failure
        return a_worker(self.child, backend)

    async def give_back(self, worker: Worker) -> None:
        await worker.child.stop(1)

    def was_used(self, backend: str) -> None:
        self.used.append(backend)


class Bench:
    """Hands, one model, one instance and the events that came of them."""

    def __init__(self, cancel_seconds_max: float = 10.0, post: Callable[[Event], None] | None = None) -> None:
        header = ModelHeader(format="x", architecture="y", context_length=100)
        entry = an_entry(name="m", backends=("x",), header=header)
        catalog = catalog_of(StandInSource("one", [entry]), default="m")

        async def no_header(*_: Any) -> ModelHeader:
            raise AssertionError("the entry has its header")

        self.models = Models(
            catalog,
            headers_by(no_header),
            {"x": StandInBackend("x")},
            InstanceSettings(),
            device="cpu",
            cores=2,
        )
        self.supervisor = StandInSupervisor()
        self.child = self.supervisor.child
        self.events: list[Event] = []
        settings = WorkerSettings(cancel_seconds_max=cancel_seconds_max)
        self.hands = WorkerHands(
            self.models, cast("Supervisor", self.supervisor), settings, SystemClock(), post or self.events.append
        )

    async def live(self) -> asyncio.Task[InstanceGone]:
        """Starts the instance, up to where it waits for the worker's word."""
        self.need = await self.models.need(*(await self.models.choose("m", None)), Wish())
        task = asyncio.create_task(self.hands.live(Load("r", I1, self.need, 1)))
        await settle()
        return task

    async def loaded(self) -> asyncio.Task[InstanceGone]:
        task = await self.live()
        self.child.say(LOADED)
        await settle()
        return task

    async def taken(self, conversation: Conversation) -> RequestId:
        await self.models.need(*(await self.models.choose("m", None)), Wish())
        self.hands.take(conversation.call, next(iter(self.models.keys_of(self._entry))), "normal")
        return conversation.call.id

    @property
    def _entry(self) -> Any:
        return an_entry(name="m")

    async def dispatched(self, conversation: Conversation) -> asyncio.Task[LeaseReturned]:
        request = await self.taken(conversation)
        task = asyncio.create_task(self.hands.dispatch(Dispatch("r", request, I1)))
        await settle()
        return task


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def _error(conversation: Conversation) -> Error:
    (error,) = conversation.of(Error)
    assert not conversation.of(Result)
    return error


async def test_an_instance_lives_from_its_load_to_its_workers_end() -> None:
    bench = Bench()
    task = await bench.loaded()
    assert bench.events == [InstanceReady("r", I1, Backend.process_bytes + 5, 2, 100)]
    assert bench.supervisor.used == ["x"]
    bench.child.end("was ended by SIGKILL", "last words")
    gone = await task
    assert gone.reason.why is Why.WORKER_DIED
    assert "last words" in gone.reason.detail


@pytest.mark.parametrize(
    ("memory", "capabilities"),
    [
        ({"weights_bytes": -1}, {}),
        ({"weights_bytes": 2**63, "kv_bytes": 2**63}, {}),
        ({"other_bytes": 2**51}, {}),
        ({"weights_bytes": "5"}, {}),
        ({"weights_bytes": True}, {}),
        ({}, {"sequences": "many"}),
        ({}, {"context": None}),
        ({}, {"threads": "all"}),
    ],
)
async def test_a_report_that_makes_no_sense_is_a_failed_load(
    memory: dict[str, Any], capabilities: dict[str, Any]
) -> None:
    bench = Bench()
    task = await bench.live()
    bench.child.say(Loaded(memory, {**LOADED.capabilities, **capabilities}, 0.1))
    assert (await task).reason.why is Why.LOAD_FAILED
    assert bench.events == []
    assert bench.child.has_ended


async def test_a_worker_gets_no_more_sequences_and_context_than_it_was_granted() -> None:
    bench = Bench()
    await bench.live()
    claimed = to_plain(Capabilities(sequences=10**9, context=10**9, batch_tokens=1))
    bench.child.say(Loaded(LOADED.memory, claimed, 0.1))
    await settle()
    (ready,) = bench.events
    assert isinstance(ready, InstanceReady)
    assert (ready.sequences, ready.context) == (bench.need.sequences, bench.need.context)
    bench.child.end()


@pytest.mark.parametrize("out_of_memory", [False, True])
async def test_a_refused_load_says_why(out_of_memory: bool) -> None:
    bench = Bench()
    task = await bench.live()
    bench.child.say(LoadFailed("no such layer", out_of_memory))
    reason = (await task).reason
    assert reason.why is (Why.LOAD_OUT_OF_MEMORY if out_of_memory else Why.LOAD_FAILED)
    assert reason.detail == "no such layer"


@pytest.mark.parametrize("failure", [ChildEndedError("no", "tail"), OSError(11, "no")])
async def test_a_worker_that_cannot_be_started_is_a_failed_launch(failure: Exception) -> None:
    bench = Bench()
    bench.supervisor.failure = failure
    assert (await (await bench.live())).reason.why is Why.LAUNCH_FAILED


async def test_an_unload_while_the_worker_is_launched_ends_it_unloaded() -> None:
    bench = Bench()
    bench.supervisor.may_launch.clear()
    task = await bench.live()
    await bench.hands.unload(Unload("u", I1))
    bench.supervisor.may_launch.set()
    assert (await task).reason.why is Why.UNLOADED
    assert bench.child.sent == []
    assert bench.child.has_ended


@pytest.mark.parametrize("loaded", [False, True])
async def test_an_unload_at_any_later_moment_ends_it_unloaded(loaded: bool) -> None:
    bench = Bench()
    task = await (bench.loaded() if loaded else bench.live())
    await bench.hands.unload(Unload("u", I1))
    await bench.hands.unload(Unload("u", I1))
    assert (await task).reason.why is Why.UNLOADED
    await bench.hands.unload(Unload("u", I1))


async def test_an_answer_goes_to_its_client_with_a_receipt() -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    (submit,) = [message for message in bench.child.sent if isinstance(message, Submit)]
    bench.child.say(Chunk(submit.request, 2, b"\x01\x02"), Finished(submit.request, {}, b"\x80"))
    returned = await task
    assert (returned.lost, returned.charged_seconds) == (None, 0.0)
    assert [chunk.body for chunk in conversation.of(ChunkMessage)] == [b"\x01\x02"]
    (result,) = conversation.of(Result)
    assert (result.model, result.instance, result.body) == ("m", I1, b"\x80")
    bench.child.end()


@pytest.mark.parametrize("seconds", [1e9, 2**63, float("inf"), float("nan"), -1.0, "1", True, None, 5e7])
async def test_a_worker_is_charged_no_more_time_than_has_passed(seconds: object) -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    names: list[str] = ["charged_seconds", "prompt_seconds", "decoding_seconds"]
    header: dict[str, Any] = dict.fromkeys(names, seconds)
    bench.child.say(Finished(conversation.call.id, header, b""))
    returned = await task
    assert 0 <= returned.charged_seconds < 60
    (result,) = conversation.of(Result)
    assert 0 <= result.prompt_seconds < 60
    bench.child.end()


@pytest.mark.parametrize("code", [*ERROR_CODES, "made_up", "", "x" * 10_000])
async def test_a_worker_cannot_speak_for_the_daemon(code: str) -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    numbers = {"a": 1, "nan": float("nan"), "inf": float("inf"), "flag": True, "text": "x", "k" * 65: 1, "b": 2**64 - 1}
    field = "\U0001f600" * 100_000
    bench.child.say(Failed(conversation.call.id, code, "\U0001f600" * 100_000, numbers, b"\xff" * 1_000_000, field))
    await task
    error = _error(conversation)
    assert error.field == field[:NAME_LENGTH_MAX]
    assert error.code == (code if code in ERROR_CODES and code not in CODES_OF_OURS else "internal")
    assert error.numbers == {"a": 1, "b": 2**64 - 1}
    bench.child.end()


async def test_progress_of_a_prompt_is_told_and_a_flood_of_it_is_not() -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    await bench.dispatched(conversation)
    request = conversation.call.id
    bench.child.say(Prompted(request, 1, 2), Measured(request, -1, -2), Measured(request, 2**63, 0))
    bench.child.say(Measured(request, 100_000, 0), Measured(request, 50, 0))
    bench.child.say(*[Prompted(request, done, 100_000) for done in range(100_001)])
    bench.child.say(*[Prompted(request, done, done) for done in range(1000)])
    told = [(message.done, message.total) for message in conversation.of(Progress)]
    assert told[0] == (0, 100_000)
    assert 50 <= len(told) <= 110
    assert told == sorted(told)
    bench.child.end()


async def test_a_worker_that_does_not_pause_is_ended_before_the_daemon_drowns() -> None:
    bench, conversation = Bench(), Conversation(credit=0)
    await bench.loaded()
    task = await bench.dispatched(conversation)
    for _ in range(40):
        bench.child.say(Chunk(conversation.call.id, 1, bytes(1024 * 1024)))
    assert bench.child.killed
    returned = await task
    assert returned.lost is not None


async def test_a_lost_request_is_told_by_the_cores_reject_and_only_then() -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    bench.child.end("was ended by SIGSEGV")
    returned = await task
    assert returned.lost is not None
    assert conversation.received == []
    bench.hands.reject(Reject("r", conversation.call.id, returned.lost))
    assert (_error(conversation).code, b"SIGSEGV" in _error(conversation).body) == ("worker_died", True)
    bench.hands.reject(Reject("r", conversation.call.id, returned.lost))


async def test_a_dispatch_to_an_instance_that_has_just_died_is_lost() -> None:
    bench, conversation = Bench(), Conversation()
    task = await bench.loaded()
    bench.child.end()
    await task
    returned = await (await bench.dispatched(conversation))
    assert returned.lost is not None
    bench.hands.reject(Reject("r", conversation.call.id, returned.lost))
    assert _error(conversation).code == "worker_died"


async def test_a_load_that_is_accepted_when_its_instance_has_just_died_is_an_error() -> None:
    bench, conversation = Bench(), Conversation()
    task = await bench.loaded()
    bench.child.end()
    await task
    request = await bench.taken(conversation)
    bench.hands.accept(Accept("r", request, I1))
    assert _error(conversation).code == "worker_died"


async def test_a_cancel_is_passed_on_and_answered() -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    request = conversation.call.id
    conversation.call.cancel()
    assert bench.events[-1] == RequestCancelled(request, request)
    cancelling = asyncio.create_task(bench.hands.cancel(CancelDispatched("r", request, I1, Reason(Why.CANCELLED))))
    await settle()
    assert Cancel(request) in bench.child.sent
    bench.child.say(Failed(request, "cancelled", "", {}, b""))
    await task
    await cancelling
    assert _error(conversation).code == "cancelled"
    assert not bench.child.killed
    bench.child.end()


async def test_of_many_askers_the_first_are_named_and_all_are_counted() -> None:
    bench = Bench()
    await bench.loaded()
    need, state = bench.need, State({})
    state.instances[I1] = Instance(I1, need, "r")
    for number in range(ASKERS_MAX + 1):
        call = Conversation(client_id=f"c{number}").call
        bench.hands.take(call, need.model, "normal")
        state.requests[call.id] = WaitingRequest(call.id, call.client.id, need, Wish(), "normal", 0.0, call.id)
    (info,) = bench.hands.instances(state)
    assert [asker.session for asker in info.askers] == [f"c{number}" for number in range(ASKERS_MAX)]
    assert info.queued == ASKERS_MAX + 1
    bench.child.end()


@pytest.mark.parametrize("acts", list(itertools.product(["stir", "step", "end"], repeat=4)), ids=" ".join)
async def test_what_a_worker_was_told_last_of_a_pause_is_what_the_core_believes(acts: tuple[str, ...]) -> None:
    """The client of a paused request begins to read again, stops, … (`stir`), with and without a step of the core in
    between, while the request that has the only sequence ends or not."""
    async with asyncio.TaskGroup() as tasks:
        conductor = Conductor(
            State({DeviceId("cpu"): Device(DeviceId("cpu"), 2**40, 2)}), Story(), SystemClock(), tasks
        )
        bench = Bench(post=conductor.post)
        conductor.employ(bench.hands)
        running = tasks.create_task(conductor.run())
        need = await bench.models.need(*(await bench.models.choose("m", None)), Wish())
        first, second = Conversation(client_id="c1").call, Conversation(client_id="c2").call
        for call in (first, second):
            bench.hands.take(call, need.model, "normal")
            conductor.post(RequestArrived(call.id, call.id, call.client.id, need, Wish()))
        await settle()
        one_sequence = to_plain(Capabilities(sequences=1, context=100, batch_tokens=8))
        bench.child.say(Loaded(LOADED.memory, one_sequence, 0.1))
        await settle()
        first.on_pause()
        await settle()
        reads = False
        for act in acts:
            if act == "stir":
                reads = not reads
                (first.on_resume if reads else first.on_pause)()
            elif act == "end":
                bench.child.say(Finished(second.id, {}, b""))
            else:
                await settle()
        await settle()
        (instance,) = conductor.state.instances.values()
        told = [m for m in bench.child.sent if isinstance(m, (Submit, Pause, Resume)) and m.request == first.id]
        assert isinstance(told[-1], Pause) == (first.id in instance.paused)
        bench.child.end()
        await settle()
        running.cancel()


async def test_a_worker_that_does_not_give_a_request_up_is_ended() -> None:
    bench, conversation = Bench(cancel_seconds_max=0.02), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    request = conversation.call.id
    await bench.hands.cancel(CancelDispatched("r", request, I1, Reason(Why.SHUTTING_DOWN)))
    assert bench.child.killed
    returned = await task
    assert returned.lost is not None
    # The core knows why it was being cancelled, and says that instead of the loss.
    bench.hands.reject(Reject("r", request, Reason(Why.SHUTTING_DOWN)))
    assert _error(conversation).code == "shutting_down"


async def test_cancelling_what_has_ended_does_nothing() -> None:
    bench, conversation = Bench(), Conversation()
    await bench.loaded()
    task = await bench.dispatched(conversation)
    bench.child.say(Finished(conversation.call.id, {}, b""))
    await task
    await bench.hands.cancel(CancelDispatched("r", conversation.call.id, I1, Reason(Why.CANCELLED)))
    assert not bench.child.killed
    bench.child.end()


async def test_nothing_is_remembered_of_calls_that_have_ended() -> None:
    bench = Bench()
    await bench.loaded()
    for number in range(5):
        conversation = Conversation(client_id=f"c{number}")
        task = await bench.dispatched(conversation)
        bench.child.say(Finished(conversation.call.id, {}, b""))
        await task
    rejected = Conversation(client_id="r")
    bench.hands.reject(Reject("r", await bench.taken(rejected), Reason(Why.QUEUE_FULL)))
    assert _error(rejected).code == "busy"
    bench.child.end()
    await settle()
    assert (vars(bench.hands)["_pending"], vars(bench.hands)["_live"]) == ({}, {})
