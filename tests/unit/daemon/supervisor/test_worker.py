"""A worker is believed where it answers what it was asked, and no further."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stand_ins import StandInChild, a_worker

from enclaved.daemon.supervisor.worker import (
    CHUNK_BYTES_MAX,
    STRAYS_MAX,
    LoadRefusedError,
    Worker,
    WorkerDiedError,
)
from enclaved.link.framing import LinkError
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Failed,
    Finished,
    FromChild,
    HeaderRead,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Pause,
    Pong,
    Probed,
    Prompted,
    Resume,
    SetThreads,
    Submit,
    Warm,
)

pytestmark = pytest.mark.asyncio

LOAD = Load("m", "e", [], {}, {}, {})
LOADED = Loaded({}, {}, 1.0)


class Notes:
    """A stream that notes what came."""

    def __init__(self) -> None:
        self.came: list[Any] = []

    def measured(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.came.append(("measured", prompt_tokens, cached_tokens))

    def prompted(self, done: int, total: int) -> None:
        self.came.append(("prompted", done, total))

    def chunk(self, body: bytes, count: int) -> None:
        self.came.append((body, count))


class Bench:
    def __init__(self) -> None:
        self.child = StandInChild()
        self.worker: Worker = a_worker(self.child)
        self.fractions: list[float] = []
        self.notes: dict[str, Notes] = {}

    async def loading(self) -> asyncio.Task[Loaded]:
        task = asyncio.create_task(self.worker.load(LOAD, [], self.fractions.append))
        await asyncio.sleep(0)
        return task

    async def running(self, request: str) -> asyncio.Task[Any]:
        self.notes[request] = Notes()
        submit = Submit(request, "generate", None, 1, "normal", b"")
        task = asyncio.create_task(self.worker.run(submit, self.notes[request]))
        await asyncio.sleep(0)
        return task


async def test_a_load_ends_with_what_the_worker_says() -> None:
    bench = Bench()
    task = await bench.loading()
    bench.child.say(LoadProgress(0.25), LoadProgress(0.5), LOADED)
    assert await task == LOADED
    assert (bench.fractions, bench.child.sent) == ([0.25, 0.5], [LOAD])


async def test_a_refused_load_says_why_in_so_many_words_at_most() -> None:
    bench = Bench()
    task = await bench.loading()
    bench.child.say(LoadFailed("no" * 10_000_000, True))
    with pytest.raises(LoadRefusedError) as refused:
        await task
    assert refused.value.out_of_memory
    assert len(refused.value.message) < 10_000


async def test_a_death_ends_a_load_and_every_request_with_the_last_words() -> None:
    bench = Bench()
    tasks: list[asyncio.Task[Any]] = [await bench.loading(), await bench.running("a"), await bench.running("b")]
    bench.child.end("was ended by SIGSEGV", "the last words")
    for task in tasks:
        with pytest.raises(WorkerDiedError, match="SIGSEGV") as died:
            await task
        assert died.value.tail == "the last words"


async def test_a_dead_worker_takes_nothing_more() -> None:
    bench = Bench()
    bench.child.end()
    for task in (await bench.loading(), await bench.running("a")):
        with pytest.raises(WorkerDiedError):
            await task


async def test_answers_go_to_their_own_requests() -> None:
    bench = Bench()
    one, two = await bench.running("a"), await bench.running("b")
    bench.child.say(
        Measured("a", 3, 1), Prompted("b", 1, 2), Chunk("a", 1, b"x"), Chunk("b", 2, b"yz"), Finished("a", {}, b"")
    )
    assert await one == Finished("a", {}, b"")
    assert bench.notes["a"].came == [("measured", 3, 1), (b"x", 1)]
    assert bench.notes["b"].came == [("prompted", 1, 2), (b"yz", 2)]
    bench.child.say(Failed("b", "internal", "no", {}, b""))
    assert isinstance(await two, Failed)


async def test_only_the_first_end_counts_and_nothing_comes_after_it() -> None:
    bench = Bench()
    task = await bench.running("a")
    bench.child.say(Finished("a", {}, b"1"), Failed("a", "internal", "", {}, b""), Chunk("a", 1, b"x"))
    assert await task == Finished("a", {}, b"1")
    assert bench.notes["a"].came == []
    assert not bench.child.killed


async def test_what_the_daemon_asks_is_sent() -> None:
    bench = Bench()
    bench.worker.cancel("a")
    bench.worker.pause("a")
    bench.worker.resume("a")
    bench.worker.set_threads(3)
    assert bench.child.sent == [Cancel("a"), Pause("a"), Resume("a"), SetThreads(3)]


@pytest.mark.parametrize(
    "fractions", [[float("nan")] * 50, [-1.0, 2**63, float("inf")], [n / 100_000 for n in range(100_000)]]
)
async def test_progress_is_passed_on_as_a_fraction_and_not_too_often(fractions: list[float]) -> None:
    bench = Bench()
    task = await bench.loading()
    bench.child.say(*map(LoadProgress, fractions), LOADED)
    await task
    assert len(bench.fractions) <= 100
    assert all(0 <= fraction <= 1 for fraction in bench.fractions)
    assert bench.fractions == sorted(bench.fractions)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("a", 0, b""),
        Chunk("a", 0, b"x"),
        Chunk("a", -1, b"x"),
        Chunk("a", 2, b"x"),
        Chunk("a", 2**63, b"x"),
        Chunk("a", 1, b""),
        Chunk("a", 1, bytes(CHUNK_BYTES_MAX + 1)),
    ],
)
async def test_a_chunk_that_cannot_be_ends_the_worker(chunk: Chunk) -> None:
    bench = Bench()
    task = await bench.running("a")
    bench.child.say(chunk)
    with pytest.raises(WorkerDiedError):
        await task
    assert isinstance(bench.child.broke, LinkError)
    assert bench.notes["a"].came == []


@pytest.mark.parametrize("message", [Pong(1), Probed([]), HeaderRead(1, {})])
async def test_an_answer_that_nobody_asked_for_ends_the_worker(message: FromChild) -> None:
    bench = Bench()
    bench.child.say(message)
    assert bench.child.killed


@pytest.mark.parametrize(
    "message",
    [
        LOADED,
        LoadFailed("no", False),
        LoadProgress(0.5),
        Warm(None),
        Chunk("unknown", 1, b"x"),
        Finished("unknown", {}, b""),
        Measured("unknown", 1, 1),
    ],
)
async def test_strays_are_ignored_until_they_are_a_flood(message: FromChild) -> None:
    bench = Bench()
    bench.child.say(*[message] * STRAYS_MAX)
    assert not bench.child.killed
    bench.child.say(message)
    assert bench.child.killed


async def test_a_load_that_was_answered_before_it_was_asked_for_still_waits() -> None:
    bench = Bench()
    bench.child.say(LOADED)
    task = await bench.loading()
    assert not task.done()
    bench.child.say(LOADED)
    assert await task == LOADED


async def test_a_request_that_could_not_be_sent_is_not_remembered() -> None:
    bench = Bench()
    bench.child.refuses = LinkError("too large")
    task = await bench.running("a")
    with pytest.raises(LinkError):
        await task
    bench.child.say(Chunk("a", 1, b"x"))
    assert bench.notes["a"].came == []
