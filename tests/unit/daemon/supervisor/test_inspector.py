"""An inspector with vocabularies, by what its child says, does not say, or dies over."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from stand_ins import StandInChild

from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.supervisor import inspector as inspecting
from enclaved.daemon.supervisor.child import Child
from enclaved.daemon.supervisor.inspector import TEXT_BYTES_MAX, Inspector
from enclaved.link.messages import HeaderRefused, UseVocabulary, VocabularyRefused, VocabularyUsed

pytestmark = pytest.mark.asyncio


class Using:
    """An inspector and the children it started."""

    def __init__(self) -> None:
        self.children: list[StandInChild] = []
        self.inspector = Inspector(self._start, asyncio.get_running_loop())

    def _start(self) -> Child:
        self.children.append(StandInChild(len(self.children) + 1))
        return cast("Child", self.children[-1])

    async def ask(self, name: str, body: bytes = b"x") -> asyncio.Task[bytes]:
        files = [("weights", name, 0, 1)]
        task = asyncio.create_task(self.inspector.use_vocabulary(name, "m:f", files, "tokenize", body))
        await settle()
        return task

    @property
    def jobs(self) -> list[int]:
        """Of the newest child."""
        return [message.job for message in self.children[-1].sent if isinstance(message, UseVocabulary)]


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_body_goes_there_and_comes_back_unread() -> None:
    using = Using()
    task = await using.ask("a", b"\xc1 no MessagePack")
    assert using.children[0].sent == [
        UseVocabulary(1, "m:f", [["weights", "a", 1]], "tokenize", b"\xc1 no MessagePack")
    ]
    using.children[0].say(VocabularyUsed(1, b"\xc1 nor this"))
    assert await task == b"\xc1 nor this"


async def test_a_vocabulary_that_ends_its_reader_costs_the_next_one_nothing() -> None:
    using = Using()
    hostile, good = await using.ask("hostile"), await using.ask("good")
    using.children[0].end("was ended by SIGABRT", "last words")
    with pytest.raises(RefusalError, match="hostile: its vocabulary ended") as refused:
        await hostile
    assert (refused.value.code, refused.value.detail) == ("bad_model_file", "last words")
    await settle()
    using.children[1].say(VocabularyUsed(using.jobs[-1], b"y"))
    assert await good == b"y"


async def test_who_comes_after_a_cancelled_request_is_not_blamed_for_its_end() -> None:
    using = Using()
    await cancelled(await using.ask("hostile"))
    good = await using.ask("good")
    assert using.jobs == [1]
    using.children[0].end("was ended by SIGABRT")
    await settle()
    using.children[1].say(VocabularyUsed(using.jobs[-1], b"y"))
    assert await good == b"y"


async def test_the_answer_to_a_cancelled_request_is_nobodys() -> None:
    using = Using()
    await cancelled(await using.ask("gone"))
    good = await using.ask("good")
    using.children[0].say(VocabularyUsed(1, b"of the one that has gone"))
    await settle()
    using.children[0].say(VocabularyUsed(2, b"y"))
    assert await good == b"y"
    assert len(using.children) == 1


async def test_a_request_cancelled_before_its_turn_is_never_sent() -> None:
    using = Using()
    first, second = await using.ask("first"), await using.ask("second")
    await cancelled(second)
    using.children[0].say(VocabularyUsed(1, b"y"))
    assert await first == b"y"
    await settle()
    assert using.jobs == [1]


async def test_a_cancelled_request_does_not_keep_the_next_one_waiting_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspecting, "LEFT_SECONDS_MAX", 0.01)
    using = Using()
    await cancelled(await using.ask("hostile"))
    good = await using.ask("good")
    await using.children[0].wait_exited()
    assert using.children[0].killed
    await settle()
    using.children[1].say(VocabularyUsed(using.jobs[-1], b"y"))
    assert await good == b"y"


async def test_one_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "VOCABULARY_SECONDS_MAX", 0.01)
    using = Using()
    with pytest.raises(RefusalError, match="slow: its vocabulary took longer"):
        await (await using.ask("slow"))
    assert using.children[0].killed


async def test_a_body_that_is_too_large_for_the_link_is_refused_before_it() -> None:
    using = Using()
    with pytest.raises(RefusalError) as refused:
        await (await using.ask("a", bytes(TEXT_BYTES_MAX + 1)))
    assert (refused.value.code, refused.value.field) == ("too_large", "body")
    assert refused.value.numbers == {"size": TEXT_BYTES_MAX + 1, "size_max": TEXT_BYTES_MAX}
    assert using.children == []


@pytest.mark.parametrize(
    ("code", "passed_on"), [("bad_request", "bad_request"), ("shutting_down", "internal"), ("no such code", "internal")]
)
async def test_a_child_may_refuse_but_not_with_any_code(code: str, passed_on: str) -> None:
    using = Using()
    task = await using.ask("a")
    using.children[0].say(VocabularyRefused(1, code, "the reason", "tokens"))
    with pytest.raises(RefusalError, match="the reason") as refused:
        await task
    assert (refused.value.code, refused.value.field) == (passed_on, "tokens")


async def test_a_child_that_answers_another_question_is_ended() -> None:
    using = Using()
    task = await using.ask("a")
    using.children[0].say(HeaderRefused(1, "no", "no_model"))
    with pytest.raises(RefusalError, match="something else"):
        await task
    assert using.children[0].killed


async def test_whoever_waits_at_the_end_is_told_so() -> None:
    using = Using()
    asked, waiting = await using.ask("a"), await using.ask("b")
    await using.inspector.close(1)
    for task in (asked, waiting):
        with pytest.raises(RefusalError) as refused:
            await task
        assert refused.value.code == "shutting_down"
