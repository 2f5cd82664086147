"""The loop over an engine whose sequences can be shared: prefixes, choices, a cache too small for all, long answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import SmallEngine
from test_loop import Bench, a_submit

from enclave.protocol.bodies import TokenBias
from enclaved.link.messages import Cancel, Failed, Finished, Measured, Pause, Prompted, Resume
from enclaved.plugin.engine import EngineError, InterruptedStepError, Sampled, SampleRow, SequenceId, Token
from enclaved.worker.reading import LONG_BODY_BYTES


def a_bench(**engine: Any) -> Bench:
    wanted: dict[str, Any] = {"caches": True, "context": 256}
    return Bench(SmallEngine(**(wanted | engine)))


def usage(bench: Bench, request: str) -> Mapping[str, Any]:
    return bench.result(request)["usage"]


def test_a_prompt_that_was_there_before_is_not_evaluated_again() -> None:
    bench = a_bench()
    bench.submit("first", "abcdefgh")
    bench.run("first")
    before = bench.engine.evaluated
    bench.submit("again", "abcdefgh")
    bench.run("again")
    assert bench.text("again") == "hgfedcba"
    assert usage(bench, "again")["cached_tokens"] == 7
    assert "uncached_reason" not in usage(bench, "again")
    assert bench.of("again", Measured) == [Measured("again", 8, 7)]
    assert bench.engine.evaluated - before == 1 + 8  # the last of the prompt, and the answer


def test_the_receipt_says_where_a_prompt_parts_from_what_is_cached() -> None:
    bench = a_bench()
    bench.submit("first", "one two three")
    bench.run("first")
    assert usage(bench, "first")["uncached_reason"] == "the model was just loaded: its cache is empty"
    bench.submit("second", "one two four")
    bench.run("second")
    assert usage(bench, "second")["cached_tokens"] == 8
    assert usage(bench, "second")["uncached_reason"] == "token 8 ('f') is the first that differs from what is cached"
    assert bench.text("second") == "ruof owt eno"


def test_the_receipt_says_when_a_prompt_had_to_go() -> None:
    bench = a_bench(sequences=1)
    for request, prompt in (("a", "a" * 40), ("b", "b" * 40), ("c", "a" * 40)):
        bench.submit(request, prompt)
        bench.run(request)
    assert usage(bench, "c")["uncached_reason"].startswith("evicted: 40 of its tokens were cached until")


def test_a_prompt_takes_its_beginning_from_a_request_that_still_runs() -> None:
    bench = a_bench()
    bench.submit("long", "s" * 20 + "x" * 20)
    while not bench.text("long"):
        bench.loop.turn()
    bench.submit("late", "s" * 20 + "yz")
    bench.run("late")
    assert not bench.ends("long")
    bench.run("long")
    assert bench.text("late") == "zy" + "s" * 20
    assert bench.text("long") == "x" * 20 + "s" * 20
    assert usage(bench, "late")["cached_tokens"] == 20


def test_two_prompts_that_begin_alike_and_come_together_evaluate_it_once() -> None:
    bench = a_bench()
    bench.submit("a", "s" * 40 + "one")
    bench.submit("b", "s" * 40 + "two")
    bench.run("a", "b")
    assert usage(bench, "b")["cached_tokens"] == 40
    assert (bench.text("a"), bench.text("b")) == ("eno" + "s" * 40, "owt" + "s" * 40)


def test_choices_come_from_one_evaluation_of_the_prompt() -> None:
    bench = a_bench(sequences=4)
    bench.loop.post(a_submit("r", "abcdefghijklmnop", choices=3, max_tokens=4))
    bench.run("r")
    assert [bench.text("r", choice) for choice in range(3)] == ["ponm"] * 3
    result = bench.result("r")
    assert result["finish_reasons"] == ["length"] * 3
    assert result["usage"]["prompt_tokens"] == 16
    assert result["usage"]["completion_tokens"] == 12
    assert bench.engine.evaluated == 16 + 2 + 3 * 3  # the last token once more for each further choice
    draws = Counter(row.draw for row in bench.engine.rows)
    assert set(draws.values()) == {1}


def test_more_choices_than_sequences_take_turns() -> None:
    bench = a_bench(sequences=2)
    bench.loop.post(a_submit("r", "abc", choices=5))
    bench.run("r")
    assert [bench.text("r", choice) for choice in range(5)] == ["cba"] * 5


@pytest.mark.parametrize("caches", [True, False])
def test_choices_of_an_engine_without_a_cache_are_right_as_well(caches: bool) -> None:
    bench = a_bench(sequences=3, caches=caches)
    bench.loop.post(a_submit("r", "abc", choices=3))
    bench.submit("other", "xyz")
    bench.run("r", "other")
    assert [bench.text("r", choice) for choice in range(3)] == ["cba"] * 3
    assert bench.text("other") == "zyx"


def test_all_choices_end_with_a_cancel() -> None:
    bench = a_bench(sequences=2)
    bench.loop.post(a_submit("r", "abcdefgh", choices=5))
    bench.loop.turn()
    bench.loop.post(Cancel("r"))
    bench.submit("other", "xyz")
    bench.run("r", "other")
    assert bench.end("r").code == "cancelled"
    assert bench.text("r", 4) == ""


def test_a_paused_request_goes_on_from_the_cache() -> None:
    bench = a_bench(sequences=2)
    bench.submit("slow", "abcdefghijklmnop")
    while len(bench.text("slow")) < 3:
        bench.loop.turn()
    bench.loop.post(Pause("slow"))
    bench.submit("quick", "uvw")
    bench.run("quick")
    before = bench.engine.evaluated
    bench.loop.post(Resume("slow"))
    bench.run("slow")
    assert bench.text("slow") == "ponmlkjihgfedcba"
    assert bench.engine.evaluated - before <= 14


def test_a_cache_too_small_for_what_is_at_rest_and_what_runs_drops_the_former() -> None:
    bench = a_bench(sequences=8, cache_tokens=64, context=64)
    for number in range(6):
        bench.submit(str(number), f"{number}" * 20)
        bench.run(str(number))
    assert all(bench.text(str(number)) == f"{number}" * 20 for number in range(6))


def test_a_cache_too_small_for_all_who_run_makes_the_newest_wait() -> None:
    bench = a_bench(sequences=4, cache_tokens=64, context=64)
    for letter in "abcd":
        bench.submit(letter, letter * 25)
    bench.run(*"abcd")
    assert [bench.text(letter) for letter in "abcd"] == [letter * 25 for letter in "abcd"]
    ends: list[Finished] = [bench.end(letter) for letter in "abcd"]
    assert sum(end.header["preempted"] for end in ends) >= 1
    assert ends[0].header["preempted"] == 0


def test_the_less_urgent_waits_when_the_cache_is_too_small() -> None:
    bench = a_bench(sequences=2, cache_tokens=64, context=64)
    bench.loop.post(a_submit("background", "b" * 30, priority="background"))
    bench.loop.turn()
    bench.loop.post(a_submit("interactive", "i" * 30, priority="interactive"))
    bench.run("background", "interactive")
    assert bench.end("background").header["preempted"] == 1
    assert bench.end("interactive").header["preempted"] == 0


def test_a_cache_that_one_alone_overflows_is_an_error_of_that_one() -> None:
    bench = a_bench(sequences=2, cache_tokens=16, context=64)
    bench.submit("big", "x" * 40)
    bench.submit("small", "abc")
    bench.run("big", "small")
    assert bench.end("big").code == "internal"
    assert bench.text("small") == "cba"


def test_a_cache_too_small_while_the_one_who_has_it_is_paused_goes_to_who_waits() -> None:
    bench = a_bench(sequences=4, cache_tokens=64, context=64)
    bench.submit("first", "a" * 30)
    bench.submit("second", "b" * 30)
    while not any(isinstance(message, Prompted) and message.request == "second" for message in bench.said):
        bench.loop.turn()
    while len(bench.text("first")) < 5:
        bench.loop.turn()
    bench.loop.post(Pause("first"))
    bench.run("second")
    assert bench.text("second") == "b" * 30
    bench.loop.post(Resume("first"))
    bench.run("first")
    assert bench.text("first") == "a" * 30


def test_a_token_that_cannot_be_chosen_ends_its_own_request_only() -> None:
    bench = a_bench(sequences=2)
    sample = bench.engine.sample

    def picky(rows: Sequence[SampleRow]) -> list[Sampled]:
        if any(row.sampling.logit_bias for row in rows):
            raise EngineError("every token is forbidden")
        return sample(rows)

    vars(bench.engine)["sample"] = picky
    bench.loop.post(a_submit("bad", "abc", logit_bias=(TokenBias(token=1),)))
    bench.submit("good", "xyz")
    bench.run("bad", "good")
    assert bench.end("bad").code == "internal"
    assert bench.end("bad").body == b"every token is forbidden"
    assert bench.text("good") == "zyx"


def test_without_leave_an_answer_ends_where_the_context_does_and_says_so() -> None:
    bench = a_bench(context=16)
    bench.submit("r", "x" * 12)
    bench.submit("asked", "x" * 12, 4)
    bench.run("r", "asked")
    assert bench.result("r")["context_full"] is True
    assert "context_full" not in bench.result("asked")


@pytest.mark.parametrize("can_shift", [True, False])
def test_with_leave_an_answer_goes_on_without_the_oldest(can_shift: bool) -> None:
    bench = a_bench(context=16, can_shift=can_shift)
    bench.loop.post(a_submit("r", "abcdefghijkl", 30, overflow="shift", keep=2, ignore_eos=True))
    bench.run("r")
    result = bench.result("r")
    assert result["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == 30
    assert result["usage"]["shifted_tokens"] >= 14
    assert bench.text("r").startswith("lkji")


def test_a_shifted_sequence_is_no_prefix_of_anything_beyond_what_it_kept() -> None:
    bench = a_bench(context=16, can_shift=True)
    bench.loop.post(a_submit("r", "abcdefghijkl", 10, overflow="shift", keep=2, ignore_eos=True))
    bench.run("r")
    bench.submit("again", "abcdefghijkl", 1)
    bench.run("again")
    assert usage(bench, "again")["cached_tokens"] <= 2


def test_with_leave_too_long_a_prompt_is_cut_and_the_receipt_counts_it() -> None:
    bench = a_bench(context=16)
    bench.loop.post(a_submit("r", "0123456789abcdefghij", overflow="truncate", keep=2))
    bench.run("r")
    assert usage(bench, "r")["left_out_tokens"] == 8
    assert usage(bench, "r")["prompt_tokens"] == 12
    assert bench.text("r").startswith("jihg")


def test_what_cannot_be_kept_is_refused() -> None:
    bench = a_bench(context=16)
    bench.loop.post(a_submit("r", "x" * 30, overflow="shift", keep=8))
    bench.loop.turn()
    end = bench.end("r")
    assert isinstance(end, Failed)
    assert (end.code, end.field) == ("bad_request", "keep")


@given(st.integers(2, 40), st.integers(1, 80))
def test_a_prompt_of_exactly_what_fits_passes_and_one_more_token_fails(context: int, length: int) -> None:
    bench = a_bench(context=context)
    bench.submit("r", "x" * length)
    bench.run("r")
    end = bench.end("r")
    if length < context:
        assert isinstance(end, Finished)
        assert usage(bench, "r")["prompt_tokens"] == length
    else:
        assert (end.code, end.numbers["prompt_tokens"], end.numbers["prompt_tokens_max"]) == (
            "context_exceeded",
            length,
            context - 1,
        )


def test_a_long_prompt_is_read_beside_the_answers_of_others_and_can_be_cancelled_meanwhile() -> None:
    bench = a_bench()
    long = "x" * (LONG_BODY_BYTES + 1)
    bench.loop.post(a_submit("gone", long))
    bench.submit("short", "abc")
    bench.loop.post(Cancel("gone"))
    bench.run("short", "gone")
    assert bench.end("gone").code == "cancelled"
    assert bench.text("short") == "cba"


# --- a long random run ---

ALPHABET = "ab"
PROMPTS = st.one_of(
    st.text(ALPHABET, min_size=1, max_size=30),
    st.tuples(st.sampled_from(["a" * 12, "ab" * 10]), st.text(ALPHABET, min_size=1, max_size=8)).map("".join),
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """An engine, and what happens to it: requests with choices and classes, turns, cancels, pauses, aborts."""
    context = draw(st.integers(62, 90))
    engine = {
        "sequences": draw(st.integers(1, 5)),
        "context": context,
        "batch_tokens": draw(st.integers(5, 12)),
        "caches": draw(st.sampled_from([True, True, False])),
        "cache_tokens": draw(st.sampled_from([0, context, 2 * context])),
    }
    happenings: list[tuple[Any, ...]] = []
    count = 0
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(["submit", "submit", "turns", "cancel", "pause", "resume", "abort", "fail"]))
        if kind == "submit":
            classes = st.sampled_from(["interactive", "normal", "background"])
            happenings.append(("submit", str(count), draw(PROMPTS), draw(st.integers(1, 3)), draw(classes)))
            count += 1
        elif kind in ("turns", "abort", "fail"):
            happenings.append((kind, draw(st.integers(1, 6))))
        elif count:
            happenings.append((kind, str(draw(st.integers(0, count - 1)))))
    return engine, happenings


@given(runs())
@settings(max_examples=150)
def test_whatever_happens_each_text_is_the_one_it_would_be_alone(
    run: tuple[dict[str, Any], list[tuple[Any, ...]]],
) -> None:
    """The engine breaks the test when a position, a share or a cut does not fit what its sequences hold; the texts show
    whether what they hold is what the requests asked for."""
    engine, happenings = run
    bench = a_bench(**engine)
    asked: dict[str, tuple[str, int]] = {}
    cancelled: set[str] = set()
    failing = 0
    for kind, *rest in happenings:
        match kind:
            case "submit":
                request, prompt, choices, priority = rest
                asked[request] = (prompt, choices)
                bench.loop.post(a_submit(request, prompt, choices=choices, priority=priority))
            case "turns":
                for _ in range(rest[0]):
                    bench.turn_if_it_can()
            case "cancel":
                cancelled.add(rest[0])
                bench.loop.post(Cancel(rest[0]))
            case "pause":
                bench.loop.post(Pause(rest[0]))
            case "resume":
                bench.loop.post(Resume(rest[0]))
            case "abort":
                bench.engine.failures.extend([None] * rest[0] + [InterruptedStepError("interrupted")])
            case _:
                failing += 1
                bench.engine.failures.extend([None] * rest[0] + [EngineError("broken")])
    for request in asked:
        bench.loop.post(Resume(request))
    bench.run(*asked)
    broken = 0
    for request, (prompt, choices) in asked.items():
        end = bench.end(request)
        texts = [bench.text(request, choice) for choice in range(choices)]
        if isinstance(end, Finished):
            assert texts == [prompt[::-1]] * choices
            result = bench.result(request)
            assert result["usage"]["prompt_tokens"] == len(prompt)
            assert result["usage"].get("cached_tokens", 0) < len(prompt)
            assert result["usage"]["completion_tokens"] == len(prompt) * choices
        else:
            assert end.code in ("cancelled", "internal")
            assert end.code == "internal" or request in cancelled
            broken += end.code == "internal"
            assert all(prompt[::-1].startswith(text) for text in texts)
    assert broken <= failing * engine["sequences"]
    assert not vars(bench.loop)["_jobs"]
    assert not vars(bench.loop)["_running"]
    assert not vars(bench.loop)["_waiting"]


@pytest.mark.parametrize("length", [10, LONG_BODY_BYTES + 1])
def test_a_prompt_over_which_the_backend_stumbles_ends_its_own_request_only(length: int) -> None:
    bench = a_bench()
    encode = bench.engine.vocabulary.encode

    def stumbles(text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        if text.startswith("bad"):
            raise RuntimeError("a defect")
        return encode(text, add_special=add_special, parse_special=parse_special)

    vars(bench.engine.vocabulary)["encode"] = stumbles
    bench.wait_for_commands()
    for request in ("one", "two"):
        bench.submit(request, "bad" + "x" * length)
        bench.run(request)
        assert bench.end(request).code == "internal"
    bench.submit("good", "abc")
    bench.run("good")
    assert bench.text("good") == "cba"


def test_a_beginning_that_cannot_be_shared_after_all_is_evaluated() -> None:
    bench = a_bench()

    def refuses(source: SequenceId, target: SequenceId, length: int) -> None:
        raise EngineError("not this time")

    vars(bench.engine)["share"] = refuses
    bench.submit("first", "s" * 20 + "x" * 20)
    while not bench.text("first"):
        bench.loop.turn()
    bench.submit("second", "s" * 20 + "y")
    bench.run("first", "second")
    assert bench.text("second") == "y" + "s" * 20
    assert "cached_tokens" not in usage(bench, "second")


def test_a_shift_that_fails_ends_its_own_request_only() -> None:
    bench = a_bench(context=16, can_shift=True)

    def refuses(sequence: SequenceId, start: int, count: int) -> None:
        raise EngineError("cannot be cut in the middle")

    vars(bench.engine)["shift"] = refuses
    bench.loop.post(a_submit("bad", "abcdefghijkl", 30, overflow="shift", ignore_eos=True))
    bench.submit("good", "xyz")
    bench.run("bad", "good")
    assert bench.end("bad").code == "internal"
    assert bench.text("good") == "zyx"


def test_an_answer_that_may_shift_does_not_end_because_the_context_is_full() -> None:
    bench = a_bench(context=16, can_shift=True)
    bench.loop.post(a_submit("r", "abcdefghijkl", overflow="shift", ignore_eos=True))
    bench.run("r")
    assert bench.result("r")["finish_reason"] == "length"
    assert "context_full" not in bench.result("r")
