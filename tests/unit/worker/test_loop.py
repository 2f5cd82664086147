"""The engine's loop, step by step in the test's own thread, with an engine of a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, cast
from unittest.mock import patch

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_engine import ANSWER, TOO_LONG, SmallEngine

from enclave.protocol.bodies import GenerateParams
from enclave.protocol.methods import write_body
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Failed,
    Finished,
    FromChild,
    Measured,
    Pause,
    Prompted,
    Resume,
    SetThreads,
    Submit,
)
from enclaved.plugin.engine import EngineError, InterruptedStepError, Token
from enclaved.worker.loop import Command, EngineLoop
from enclaved.worker.seats import NOT_CACHED

TURNS_MAX = 1000


class NothingToDoError(AssertionError):
    """The loop would wait for ever."""


class NeverWaits:
    """The loop's inbox; where the real one would wait for ever, this one says so."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self.put = self._queue.put
        self.get_nowait = self._queue.get_nowait
        self.seconds: float | None = None
        """How long a command may take to come, where another thread brings it; None: it must be there."""

    def get(self) -> Any:
        try:
            return self._queue.get(timeout=self.seconds) if self.seconds else self._queue.get_nowait()
        except Empty:
            raise NothingToDoError("the loop waits for a command") from None


class Bench:
    """A loop, what it said, and a clock that the test moves."""

    def __init__(self, engine: SmallEngine | None = None) -> None:
        self.engine = engine or SmallEngine()
        self.said: list[FromChild] = []
        self.now = 0.0
        with patch("enclaved.worker.loop.SimpleQueue", NeverWaits):
            self.loop = EngineLoop(self.engine, self.said.extend, lambda: self.now)

    def submit(self, request: str, prompt: str | tuple[int, ...] = "abc", max_tokens: int | None = None) -> None:
        self.loop.post(a_submit(request, prompt, max_tokens))

    def run(self, *requests: str) -> None:
        """Turns until all of these have ended."""
        for _ in range(TURNS_MAX):
            if all(self.ends(request) for request in requests):
                return
            self.loop.turn()
        raise AssertionError(f"{requests} did not end: {self.said[-5:]}")

    def wait_for_commands(self) -> None:
        """From now on the loop waits for a command that another thread may bring."""
        vars(self.loop)["_inbox"].seconds = 10.0

    def turn_if_it_can(self) -> None:
        """A turn, unless it would wait for a command."""
        with suppress(NothingToDoError):
            self.loop.turn()

    def of(self, request: str, kind: type[Any] | tuple[type[Any], ...]) -> list[Any]:
        return [m for m in self.said if isinstance(m, kind) and getattr(m, "request", None) == request]

    def ends(self, request: str) -> list[Any]:
        return self.of(request, (Finished, Failed))

    def end(self, request: str) -> Any:
        (end,) = self.ends(request)
        return end

    def text(self, request: str, choice: int = 0) -> str:
        return "".join(
            value["text"]
            for chunk in self.of(request, Chunk)
            for value in values(chunk)
            if value.get("choice", 0) == choice
        )

    def result(self, request: str) -> Mapping[str, Any]:
        end = self.end(request)
        assert isinstance(end, Finished), end
        return cast("Mapping[str, Any]", values(end)[0])


def values(message: Chunk | Finished) -> list[Any]:
    unpacker = cast("Any", msgpack).Unpacker(raw=False)
    unpacker.feed(message.body)
    return list(unpacker)


def a_submit(
    request: str,
    prompt: str | tuple[int, ...] = "abc",
    max_tokens: int | None = None,
    *,
    method: str = "generate",
    choices: int = 1,
    body: bytes | None = None,
    priority: str = "normal",
    **params: Any,
) -> Submit:
    body = write_body(GenerateParams(prompt=prompt, **params)) if body is None else body
    return Submit(request, method, max_tokens, choices, priority, body)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_is_measured_answered_and_finished(bench: Bench) -> None:
    bench.submit("r", "hello")
    bench.run("r")
    assert bench.of("r", Measured) == [Measured("r", 5, 0)]
    assert bench.text("r") == "olleh"
    result = bench.result("r")
    assert result["finish_reason"] == "stop"
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "uncached_reason": NOT_CACHED}
    assert bench.said[-1] is bench.end("r")
    assert bench.engine.held == set()


def test_each_chunk_announces_as_many_values_as_it_holds(bench: Bench) -> None:
    bench.submit("r", "hé")
    bench.run("r")
    assert all(len(values(chunk)) == chunk.count for chunk in bench.of("r", Chunk))
    tokens = [token for chunk in bench.of("r", Chunk) for value in values(chunk) for token in value["tokens"]]
    assert bytes(token % ANSWER for token in tokens) == "hé".encode()[::-1]


def test_a_long_prompt_tells_how_far_it_is(bench: Bench) -> None:
    bench.submit("r", "x" * 20, 1)
    bench.run("r")
    assert bench.of("r", Prompted) == [Prompted("r", 8, 20), Prompted("r", 16, 20)]


prompts = st.lists(st.text("abcdef", min_size=1, max_size=30), min_size=1, max_size=5)


@given(prompts, st.integers(1, 4), st.integers(1, 20))
def test_texts_are_the_same_alone_and_together(texts: list[str], sequences: int, batch: int) -> None:
    bench = Bench(SmallEngine(sequences=sequences, batch_tokens=batch))
    for number, prompt in enumerate(texts):
        bench.submit(str(number), prompt)
    bench.run(*map(str, range(len(texts))))
    assert [bench.text(str(number)) for number in range(len(texts))] == [prompt[::-1] for prompt in texts]


def test_requests_beyond_the_sequences_wait_for_one_and_need_no_command_to_go_on() -> None:
    bench = Bench(SmallEngine(sequences=1))
    for request in "abc":
        bench.submit(request, request * 3)
    bench.run("a", "b", "c")
    assert [bench.text(request) for request in "abc"] == ["aaa", "bbb", "ccc"]


def test_max_tokens_ends_an_answer(bench: Bench) -> None:
    bench.submit("r", "hello", 2)
    bench.run("r")
    assert bench.text("r") == "ol"
    assert bench.result("r")["finish_reason"] == "length"


def test_no_tokens_asked_for_is_a_result_without_a_step(bench: Bench) -> None:
    bench.submit("r", "hello", 0)
    bench.loop.turn()
    assert bench.result("r")["finish_reason"] == "length"
    assert bench.engine.calls == []


def test_an_answer_fills_the_context_and_no_more() -> None:
    bench = Bench(SmallEngine(context=16))
    bench.submit("r", "x" * 12)
    bench.run("r")
    assert bench.result("r")["usage"]["completion_tokens"] == 4
    assert bench.result("r")["finish_reason"] == "length"


@pytest.mark.parametrize("length", [16, 17, 500])
def test_a_prompt_that_leaves_no_room_is_an_error_with_the_numbers(length: int) -> None:
    bench = Bench(SmallEngine(context=16))
    bench.submit("r", "x" * length)
    bench.loop.turn()
    end = bench.end("r")
    assert (end.code, end.numbers) == (
        "context_exceeded",
        {"prompt_tokens": length, "prompt_tokens_max": 15, "context": 16},
    )


@pytest.mark.parametrize(
    ("submit", "code", "field"),
    [
        (a_submit("r", body=b""), "bad_request", "body"),
        (a_submit("r", body=b"\xc1"), "bad_request", "body"),
        (a_submit("r", body=b"\x80\x80"), "bad_request", "body"),
        (a_submit("r", body=b"\x91" * 3000 + b"\xc0"), "bad_request", "body"),
        (a_submit("r", body=b"\x81\xa6prompt\x01"), "bad_request", "prompt"),
        (a_submit("r", body=b"\x81\xa6prompt\xd6\xff\0\0\0\0"), "bad_request", "body"),
        (a_submit("r", ""), "bad_request", "prompt"),
        (a_submit("r", (1, 2 * ANSWER)), "bad_request", "prompt"),
        (a_submit("r", choices=0), "bad_request", "choices"),
        (a_submit("r", choices=257), "bad_request", "choices"),
        (a_submit("r", method="embed"), "unsupported", "method"),
        (a_submit("r", "x" * (TOO_LONG + 1)), "bad_request", "prompt"),
    ],
)
def test_a_body_that_makes_no_sense_fails_its_own_request_only(
    bench: Bench, submit: Submit, code: str, field: str
) -> None:
    bench.submit("good", "abc")
    bench.loop.post(submit)
    bench.run("r", "good")
    assert (bench.end("r").code, bench.end("r").field) == (code, field)
    assert bench.text("good") == "cba"


@given(st.binary(max_size=60))
def test_any_body_ends_in_one_finish_or_failure(body: bytes) -> None:
    bench = Bench()
    bench.loop.post(a_submit("r", body=body, max_tokens=2))
    bench.run("r")
    bench.end("r")


def test_a_cancelled_request_fails_once_and_frees_its_sequence(bench: Bench) -> None:
    bench.submit("r", "x" * 30)
    bench.loop.turn()
    bench.loop.post(Cancel("r"))
    bench.loop.post(Cancel("r"))
    bench.submit("other", "ab")
    bench.run("other")
    assert bench.end("r").code == "cancelled"
    assert bench.engine.held == set()


def test_a_request_that_waits_for_a_sequence_can_be_cancelled() -> None:
    bench = Bench(SmallEngine(sequences=1))
    bench.submit("a", "x" * 20)
    bench.submit("b")
    bench.loop.turn()
    bench.loop.post(Cancel("b"))
    bench.run("a", "b")
    assert bench.end("b").code == "cancelled"
    assert bench.text("a") == "x" * 20


def test_cancelling_what_is_not_there_does_nothing(bench: Bench) -> None:
    for command in (Cancel("no"), Pause("no"), Resume("no")):
        bench.loop.post(command)
    bench.submit("r", "ab")
    bench.run("r")
    bench.loop.post(Cancel("r"))
    bench.submit("s", "ab")
    bench.run("s")
    assert [bench.text(request) for request in "rs"] == ["ba", "ba"]
    assert isinstance(bench.end("r"), Finished)


def test_a_cancel_interrupts_a_step_that_works_for_its_request_alone(bench: Bench) -> None:
    bench.submit("r", "x" * 30)
    bench.engine.before_step = lambda: bench.loop.post(Cancel("r"))
    bench.engine.failures.append(InterruptedStepError("interrupted"))
    bench.loop.turn()
    assert bench.engine.interrupts == 1
    bench.submit("other", "ab")
    bench.engine.before_step = lambda: None
    bench.run("r", "other")
    assert bench.end("r").code == "cancelled"


def test_a_cancel_does_not_interrupt_a_step_that_others_share(bench: Bench) -> None:
    bench.submit("a", "xy")
    bench.submit("b", "xy")
    while not any(len(runs) == 2 for runs in bench.engine.calls):
        bench.loop.turn()
    bench.engine.before_step = lambda: bench.loop.post(Cancel("a"))
    bench.loop.turn()
    assert bench.engine.interrupts == 0


@pytest.mark.parametrize("step", range(8))
def test_an_interrupted_step_is_made_up_for(step: int) -> None:
    bench = Bench()
    bench.engine.failures.extend([None] * step + [InterruptedStepError("interrupted")])
    bench.submit("a", "0123456789abc")
    bench.submit("b", "xyz")
    bench.run("a", "b")
    assert (bench.text("a"), bench.text("b")) == ("cba9876543210", "zyx")


def test_a_failed_step_fails_its_own_requests_once_and_the_loop_goes_on(bench: Bench) -> None:
    failure = EngineError("broken")
    bench.engine.failures.append(failure)
    bench.submit("a", "abc")
    bench.submit("b", "abc")
    bench.run("a", "b")
    assert bench.end("a").code == "internal"
    assert bench.end("a").body == str(failure).encode()
    assert str(failure) not in bench.end("a").message
    assert bench.text("b") == "cba"
    assert bench.engine.held == set()


def test_a_paused_request_makes_no_tokens_until_it_is_resumed(bench: Bench) -> None:
    bench.submit("slow", "abcdef")
    bench.submit("quick", "uvwxyz")
    while not bench.text("slow"):
        bench.loop.turn()
    bench.loop.post(Pause("slow"))
    bench.run("quick")
    paused_at = bench.text("slow")
    assert not bench.ends("slow")
    assert len(paused_at) <= 2
    bench.loop.post(Resume("slow"))
    bench.run("slow")
    assert bench.text("slow") == "fedcba"


def test_a_paused_request_can_be_cancelled(bench: Bench) -> None:
    bench.submit("r", "abcdef")
    bench.loop.turn()
    bench.loop.post(Pause("r"))
    bench.loop.post(Cancel("r"))
    bench.submit("other", "ab")
    bench.run("r", "other")
    assert bench.end("r").code == "cancelled"


def test_a_paused_request_lends_its_sequence_and_says_the_same_as_if_it_had_not() -> None:
    bench = Bench(SmallEngine(sequences=1))
    bench.submit("slow", "abcdef")
    while len(bench.text("slow")) < 3:
        bench.loop.turn()
    bench.loop.post(Pause("slow"))
    bench.submit("quick", "uvw")
    bench.run("quick")
    assert bench.text("quick") == "wvu"
    bench.loop.post(Resume("slow"))
    bench.run("slow")
    assert bench.text("slow") == "fedcba"
    assert bench.engine.held == set()


def test_a_request_that_is_paused_while_it_waits_for_a_sequence_does_not_take_one() -> None:
    bench = Bench(SmallEngine(sequences=1))
    bench.submit("first", "abc")
    bench.submit("paused", "def")
    bench.loop.post(Pause("paused"))
    bench.submit("third", "ghi")
    bench.run("first", "third")
    assert bench.text("paused") == ""
    bench.loop.post(Resume("paused"))
    bench.run("paused")
    assert bench.text("paused") == "fed"


def test_a_request_whose_sequence_was_lent_can_be_cancelled() -> None:
    bench = Bench(SmallEngine(sequences=1))
    bench.submit("slow", "abcdef")
    bench.loop.turn()
    bench.loop.post(Pause("slow"))
    bench.submit("quick", "uvw")
    bench.loop.turn()
    bench.loop.post(Cancel("slow"))
    bench.run("slow", "quick")
    assert bench.end("slow").code == "cancelled"
    assert bench.text("quick") == "wvu"


def test_a_cancelled_request_says_what_it_has_cost(bench: Bench) -> None:
    def second_passes() -> None:
        bench.now += 1

    bench.engine.before_step = second_passes
    bench.submit("r", "x" * 20)
    bench.loop.turn()
    bench.loop.turn()
    bench.loop.post(Cancel("r"))
    bench.submit("other", "a")
    bench.run("r", "other")
    assert bench.end("r").numbers == {
        "prompt_tokens": 20,
        "completion_tokens": 0,
        "evaluated_tokens": 12,
        "charged_seconds": 2.0,
    }


def test_what_a_step_says_leaves_in_one_go() -> None:
    bench = Bench(SmallEngine(sequences=3, batch_tokens=8))
    together: list[int] = []

    def send_all(messages: Sequence[FromChild]) -> None:
        together.append(len(messages))
        bench.said.extend(messages)

    vars(bench.loop)["_send_all"] = send_all
    for request in "abc":
        bench.submit(request, "xyz")
    bench.run("a", "b", "c")
    assert 3 in together


def test_tokens_of_quick_steps_leave_together_but_for_the_first_and_the_last() -> None:
    engine, said, now = SmallEngine(), list[list[FromChild]](), [0.0]
    with patch("enclaved.worker.loop.SimpleQueue", NeverWaits):
        loop = EngineLoop(engine, lambda some: said.append(list(some)), lambda: now[0], gather_seconds=0.01)

    def step_takes_four_milliseconds() -> None:
        now[0] += 0.004

    engine.before_step = step_takes_four_milliseconds
    loop.post(a_submit("r", "abcdefgh"))
    while not any(isinstance(message, Finished) for some in said for message in some):
        loop.turn()
    chunks = [sum(isinstance(message, Chunk) for message in some) for some in said]
    assert [count for count in chunks if count] == [1, 3, 3, 1]
    assert isinstance(said[-1][-1], Finished)


def test_an_engine_may_read_the_body_by_itself_and_gets_the_very_bytes(bench: Bench) -> None:
    bodies: list[bytes] = []

    def read(body: bytes) -> list[Token]:
        bodies.append(body)
        return [Token(byte) for byte in body]

    vars(bench.engine)["read_body"] = read
    body = b"\xc1\x91no MessagePack\xff"
    bench.loop.post(a_submit("r", body=body))
    bench.run("r")
    assert bodies == [body]
    tokens = [token for chunk in bench.of("r", Chunk) for value in values(chunk) for token in value["tokens"]]
    assert bytes(token % ANSWER for token in tokens) == body[::-1]


def test_an_engine_that_cannot_read_a_body_says_so_in_the_errors_body_only(bench: Bench) -> None:
    def read(body: bytes) -> list[Token]:
        raise EngineError(f"what is {body!r}?")

    vars(bench.engine)["read_body"] = read
    bench.loop.post(a_submit("r", body=b"secret"))
    bench.run("r")
    assert (bench.end("r").code, b"secret" in bench.end("r").body) == ("bad_request", True)
    assert "secret" not in bench.end("r").message


def test_threads_are_set_between_steps(bench: Bench) -> None:
    bench.submit("r", "abc")
    bench.loop.post(SetThreads(3))
    bench.run("r")
    assert bench.engine.threads == 3


def test_the_charge_is_the_time_of_the_steps_shared_by_who_was_in_them(bench: Bench) -> None:
    def second_passes() -> None:
        bench.now += 1

    bench.engine.before_step = second_passes
    bench.submit("a", "abc")
    bench.submit("b", "abc")
    bench.run("a", "b")
    charged = [bench.end(request).header["charged_seconds"] for request in "ab"]
    assert sum(charged) == pytest.approx(len(bench.engine.calls))
    assert bench.end("a").header["prompt_seconds"] == 1


ACTS = st.tuples(
    st.sampled_from(["submit", "cancel", "pause", "resume", "turn", "fail", "interrupt"]), st.integers(0, 4)
)


@given(st.lists(ACTS, max_size=40))
def test_each_request_ends_exactly_once_whatever_happens_in_between(acts: list[tuple[str, int]]) -> None:
    bench = Bench(SmallEngine(sequences=2, batch_tokens=4))
    submitted: set[str] = set()
    for act, number in acts:
        request = str(number)
        commands: dict[str, Command] = {
            "cancel": Cancel(request),
            "pause": Pause(request),
            "resume": Resume(request),
        }
        if act == "submit" and request not in submitted:
            submitted.add(request)
            bench.submit(request, "abcdefg"[: number + 1])
        elif act in commands:
            bench.loop.post(commands[act])
        elif act == "fail":
            bench.engine.failures.append(EngineError("broken"))
        elif act == "interrupt":
            bench.engine.failures.append(InterruptedStepError("interrupted"))
        elif act == "turn":
            bench.loop.post(SetThreads(1))
            bench.loop.turn()
    for request in submitted:
        bench.loop.post(Resume(request))
    bench.loop.post(SetThreads(1))
    bench.run(*submitted)
    assert Counter(m.request for m in bench.said if isinstance(m, (Finished, Failed))) == Counter(submitted)
    assert bench.engine.held == set()
    for request in submitted:
        if isinstance(bench.end(request), Finished):
            assert bench.text(request) == "abcdefg"[: int(request) + 1][::-1]
