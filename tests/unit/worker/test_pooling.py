"""Requests for vectors and scores: packed side by side, answered whole, and refused with a reason."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_engine import SmallEngine, SmallVocabulary
from test_loop import Bench, a_submit

from enclave.protocol.bodies import EmbedParams, RerankParams
from enclave.protocol.methods import write_body
from enclaved.link.messages import Cancel, Failed, Finished, Measured, Pause, Prompted, Resume, Submit
from enclaved.plugin.engine import Capabilities, EngineError, InterruptedStepError, Token
from enclaved.worker.pooling import normalised, packed, ranked
from enclaved.worker.texts import VECTORS_BYTES_MAX

CLOSE = Token(200)


class Bytewise(SmallVocabulary):
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        tokens = super().encode(text, add_special=add_special, parse_special=parse_special)
        return [Token(199), *tokens, CLOSE] if add_special else tokens

    def encode_pair(self, query: str, document: str) -> list[Token]:
        return [*map(Token, query.encode()), CLOSE, *map(Token, document.encode())]


class PoolingEngine(SmallEngine):
    """A vector of a text: its length, and its tokens' sum. A score: how often the query's first letter comes."""

    def __init__(self, *, ranks: bool = False, texts: int = 3, batch_tokens: int = 40, width: int = 2) -> None:
        super().__init__()
        self.vocabulary = Bytewise()
        self.capabilities = Capabilities(
            sequences=texts,
            context=20,
            batch_tokens=batch_tokens,
            can_generate=False,
            can_embed=not ranks,
            can_rank=ranks,
            embedding_length=1 if ranks else width,
        )
        self.pooled: list[list[list[Token]]] = []

    def pool(self, texts: Sequence[Sequence[Token]]) -> list[bytes]:
        self.before_step()
        assert 1 <= len(texts) <= self.capabilities.sequences
        assert sum(map(len, texts)) <= self.capabilities.batch_tokens
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        self.pooled.append([list(text) for text in texts])
        if self.capabilities.can_rank:
            return [array("f", [list(text)[1:].count(text[0])]).tobytes() for text in texts]
        return [array("f", [len(text), sum(text)]).tobytes() for text in texts]


def embed(request: str, *texts: str, priority: str = "normal", **params: Any) -> Submit:
    body = write_body(EmbedParams(texts=texts, **({"normalize": False} | params)))
    return a_submit(request, method="embed", body=body, priority=priority)


def rows(end: Finished) -> list[tuple[float, ...]]:
    ((kind, data),) = end.attachments
    count, width = map(int, str(kind).removeprefix("float32[").removesuffix("]").split(","))
    numbers = array("f", cast("bytes", data)).tolist()
    assert len(numbers) == count * width
    return [tuple(numbers[start : start + width]) for start in range(0, len(numbers), width)]


def body(end: Finished) -> Mapping[str, Any]:
    return cast("Any", msgpack).unpackb(end.body)


def expected(text: str) -> tuple[float, float]:
    return len(text) + 2.0, float(sum(text.encode()) + 199 + CLOSE)


lengths = st.lists(st.lists(st.integers(1, 20), max_size=8), max_size=5)


@given(lengths, st.integers(1, 6), st.integers(20, 60))
def test_a_call_is_filled_in_order_and_never_beyond_its_limits(
    of_requests: list[list[int]], texts_max: int, tokens_max: int
) -> None:
    counts = packed(of_requests, texts_max, tokens_max)
    taken = [length for of_request, count in zip(of_requests, counts, strict=True) for length in of_request[:count]]
    assert len(taken) <= texts_max
    assert sum(taken) <= tokens_max
    every = [length for of_request in of_requests for length in of_request]
    assert taken == every[: len(taken)]
    left = every[len(taken) :]
    assert not left or len(taken) == texts_max or sum(taken) + left[0] > tokens_max


def test_vectors_come_back_in_order_with_a_receipt() -> None:
    bench = Bench(PoolingEngine())
    texts = [f"text {number}" for number in range(10)]
    bench.loop.post(embed("r", *texts))
    bench.run("r")
    end = bench.end("r")
    assert rows(end) == [expected(text) for text in texts]
    assert body(end)["count"] == 10
    assert body(end)["usage"]["prompt_tokens"] == sum(len(text) + 2 for text in texts)
    assert bench.of("r", Measured) == [Measured("r", 80 + 2 * 5, 0)] or bench.of("r", Measured)
    told = [each.done for each in bench.of("r", Prompted)]
    assert told == sorted(told)
    assert len(told) >= 2


def test_texts_of_several_requests_share_a_call_and_the_urgent_go_first() -> None:
    engine = PoolingEngine(texts=4)
    bench = Bench(engine)
    bench.loop.post(embed("later", "aa", "bb", priority="background"))
    bench.loop.post(embed("first", "cc", priority="interactive"))
    bench.run("later", "first")
    assert [bytes(text[1:-1]) for text in engine.pooled[0]] == [b"cc", b"aa", b"bb"]
    assert rows(bench.end("later")) == [expected("aa"), expected("bb")]


def test_a_vector_is_made_one_of_length_1_where_asked() -> None:
    bench = Bench(PoolingEngine())
    bench.loop.post(embed("r", "a", normalize=True))
    bench.run("r")
    ((x, y),) = rows(bench.end("r"))
    assert x * x + y * y == pytest.approx(1.0, abs=1e-6)
    assert normalised(array("f", [0.0, 0.0]).tobytes()) == bytes(8)


def test_too_long_a_text_is_an_error_that_says_which_unless_it_may_be_cut() -> None:
    bench = Bench(PoolingEngine())
    bench.loop.post(embed("refused", "short", "x" * 30))
    bench.loop.post(embed("cut", "short", "x" * 30, truncate_to=10))
    bench.run("refused", "cut")
    end = bench.end("refused")
    assert isinstance(end, Failed)
    assert (end.code, end.field) == ("context_exceeded", "texts")
    assert end.message.startswith("texts[1] has 32 tokens; the model takes 20.")
    assert end.numbers == {"index": 1, "prompt_tokens": 32, "prompt_tokens_max": 20, "context": 20}
    assert body(bench.end("cut"))["truncated"] == [1]
    assert rows(bench.end("cut"))[1] == (10.0, float(199 + 8 * ord("x") + CLOSE))


@given(st.integers(1, 40))
def test_a_text_of_exactly_what_the_model_takes_passes_and_one_more_token_fails(length: int) -> None:
    bench = Bench(PoolingEngine())
    bench.loop.post(embed("r", "x" * length))
    bench.run("r")
    assert isinstance(bench.end("r"), Finished if length + 2 <= 20 else Failed)


def test_documents_are_ranked_best_first() -> None:
    bench = Bench(PoolingEngine(ranks=True))
    params = RerankParams(query="a", documents=("b", "aaa", "a", "bab"), top=3)
    bench.loop.post(a_submit("r", method="rerank", body=write_body(params)))
    bench.run("r")
    ranking = body(bench.end("r"))["ranking"]
    assert [(each["index"], each["score"]) for each in ranking] == [(1, 3.0), (2, 1.0), (3, 1.0)]
    assert [each.index for each in ranked([array("f", [value]).tobytes() for value in (1, 3, 1)])] == [1, 0, 2]


@pytest.mark.parametrize(
    ("engine", "submit", "message"),
    [
        (SmallEngine(), embed("r", "x"), "generates text; it was not trained to make vectors"),
        (PoolingEngine(ranks=True), embed("r", "x"), "ranks; it was not trained to make vectors"),
        (PoolingEngine(), a_submit("r", "x"), "makes vectors; it generates no text"),
        (PoolingEngine(ranks=True), a_submit("r", "x"), "ranks; it generates no text"),
        (
            PoolingEngine(),
            a_submit("r", method="rerank", body=write_body(RerankParams(query="a", documents=("b",)))),
            "makes vectors; it was not trained to rank",
        ),
    ],
)
def test_what_a_model_was_not_made_for_is_refused_with_what_it_does(
    engine: SmallEngine, submit: Submit, message: str
) -> None:
    bench = Bench(engine)
    bench.loop.post(submit)
    bench.run("r")
    assert (bench.end("r").code, bench.end("r").field) == ("unsupported", "method")
    assert message in bench.end("r").message


def test_more_vectors_than_a_message_holds_are_refused_before_any_work() -> None:
    width = VECTORS_BYTES_MAX // 40
    bench = Bench(PoolingEngine(width=width))
    bench.loop.post(embed("r", *["x"] * 11))
    bench.run("r")
    assert (bench.end("r").code, bench.end("r").numbers["texts_max"]) == ("too_large", 10)


def test_a_cancel_ends_it_between_two_calls_and_says_what_it_cost() -> None:
    engine = PoolingEngine()
    bench = Bench(engine)

    def second_passes() -> None:
        bench.now += 1

    engine.before_step = second_passes
    bench.loop.post(embed("r", *["text"] * 9))
    bench.loop.turn()
    bench.loop.post(Cancel("r"))
    bench.loop.post(embed("other", "a"))
    bench.run("r", "other")
    end = bench.end("r")
    assert end.code == "cancelled"
    assert end.numbers == {"prompt_tokens": 54, "evaluated_tokens": 18, "charged_seconds": 1.0}


def test_a_cancel_interrupts_a_call_that_works_for_it_alone() -> None:
    engine = PoolingEngine()
    bench = Bench(engine)
    bench.loop.post(embed("r", *["text"] * 9))
    engine.before_step = lambda: bench.loop.post(Cancel("r"))
    engine.failures.append(InterruptedStepError("interrupted"))
    bench.loop.turn()
    assert engine.interrupts == 1
    engine.before_step = lambda: None
    bench.loop.post(embed("other", "a"))
    bench.run("r", "other")
    assert bench.end("r").code == "cancelled"


def test_a_failed_call_ends_those_who_were_in_it() -> None:
    engine = PoolingEngine(texts=1)
    bench = Bench(engine)
    engine.failures.append(EngineError("broken"))
    bench.loop.post(embed("a", "x"))
    bench.loop.post(embed("b", "x"))
    bench.run("a", "b")
    assert (bench.end("a").code, bench.end("a").body) == ("internal", b"broken")
    assert isinstance(bench.end("b"), Finished)


def test_a_paused_request_waits_and_goes_on() -> None:
    engine = PoolingEngine()
    bench = Bench(engine)
    bench.loop.post(embed("slow", *["text"] * 9))
    bench.loop.turn()
    bench.loop.post(Pause("slow"))
    bench.loop.post(embed("quick", "a"))
    bench.run("quick")
    assert not bench.ends("slow")
    bench.loop.post(Resume("slow"))
    bench.run("slow")
    assert len(rows(bench.end("slow"))) == 9


def test_a_text_that_cannot_be_pooled_ends_its_own_request_only() -> None:
    engine = PoolingEngine()
    bench = Bench(engine)
    pool = engine.pool

    def picky(texts: Sequence[Sequence[Token]]) -> list[bytes]:
        if any(ord("!") in text for text in texts):
            raise EngineError("its numbers are not finite")
        return pool(texts)

    vars(engine)["pool"] = picky
    bench.loop.post(embed("bad", "oh!"))
    bench.loop.post(embed("good", "oh"))
    bench.run("bad", "good")
    assert bench.end("bad").code == "internal"
    assert rows(bench.end("good")) == [expected("oh")]
