from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_fake.engine import ANSWER, BEGIN, END, ByteVocabulary, FakeEngine, counting_byte
from enclave_fake.knobs import Knobs, KnobValue
from enclaved.plugin.engine import (
    EngineError,
    InterruptedStepError,
    LoadError,
    LoadRequest,
    MemoryUse,
    NoRoomError,
    Placement,
    Run,
    SampleRow,
    Sampling,
    SequenceId,
    Token,
)
from enclaved.plugin.model import ModelHeader
from enclaved.testing import check_backend

PLACEMENT = Placement(device="cpu", context=1000, sequences=4, threads=1)
GREEDY = Sampling(temperature=0)
S0, S1 = SequenceId(0), SequenceId(1)


class QuickEngine(FakeEngine):
    """Notes the seconds it was to wait, and dies only on paper."""

    waited: list[float | None]
    killed: int

    def __init__(self, knobs: Knobs, placement: Placement) -> None:
        super().__init__(knobs, placement)
        QuickEngine.waited = []
        QuickEngine.killed = 0

    @staticmethod
    def wait(event: threading.Event, seconds: float | None) -> bool:
        QuickEngine.waited.append(seconds)
        return event.is_set()

    @staticmethod
    def kill() -> None:
        QuickEngine.killed += 1


def request(
    settings: Mapping[str, KnobValue] | None = None, *, model: str = "fake:a", placement: Placement = PLACEMENT
) -> LoadRequest:
    return LoadRequest(model, (), ModelHeader(format="fake", architecture="fake"), placement, settings or {})


def quietly(fraction: float) -> bool:
    return True


def engine(*, model: str = "fake:a", **settings: KnobValue) -> QuickEngine:
    loaded = QuickEngine.load(request(settings, model=model), quietly)
    assert isinstance(loaded, QuickEngine)
    return loaded


def chosen(model: FakeEngine, *rows: SampleRow) -> list[Token]:
    return [sampled.token for sampled in model.sample(rows)]


def answer(model: FakeEngine, prompt: str, tokens_max: int = 50, sampling: Sampling = GREEDY) -> str:
    tokens = model.vocabulary.encode(prompt, add_special=True, parse_special=False)
    text = b""
    for _ in range(tokens_max):
        model.forward([Run(S0, model.length(S0), tokens, wants_logits=True)])
        tokens = chosen(model, SampleRow(S0, sampling, 0.0))
        if model.vocabulary.ends_generation(tokens[0]):
            break
        text += model.vocabulary.piece(tokens[0])
    model.drop(S0)
    return text.decode()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "echo"},
        {"text": "hello"},
        {"trim": False, "sequences": 1},
        {"batch_tokens": 3},
        {"prompt_tokens_per_second": 1e6, "tokens_per_second": 1e6},
    ],
)
def test_it_keeps_every_rule_of_the_contract(settings: Mapping[str, KnobValue]) -> None:
    skipped = check_backend(lambda placement: FakeEngine.load(request(settings, placement=placement), quietly))
    assert {skip.rule for skip in skipped} <= {
        "several sequences run in one step, and tokens come in the order of the rows",
        "a step carries at most batch_tokens tokens",
        "a sequence can be cut back and goes on from there",
        "a beginning can be shared, and both go on as if each had evaluated it",
        "tokens can be taken out of a sequence, and those behind move up",
        "a sequence in a batch answers as it does alone",
    }
    if not settings:
        assert skipped == []


def test_it_counts_unless_told_otherwise() -> None:
    assert answer(engine(), "anything 1 2", 24) == "1 2 3 4 5 6 7 8 9 10 11 "


@given(st.integers(0, 5000))
def test_any_byte_of_the_count_can_be_told_alone(index: int) -> None:
    text = "".join(f"{number} " for number in range(1, 2000))
    assert chr(counting_byte(index)) == text[index]


def test_echo_answers_the_prompt_and_ends() -> None:
    assert answer(engine(mode="echo"), "grüße, 東京") == "grüße, 東京"


def test_a_text_is_answered_and_ends_whatever_the_mode() -> None:
    assert answer(engine(mode="echo", text="fixed"), "prompt") == "fixed"


def test_a_prompt_without_a_marker_ends_where_logits_were_first_wanted() -> None:
    model = engine(mode="echo")
    tokens = model.vocabulary.encode("ab", add_special=False, parse_special=False)
    model.forward([Run(S0, 0, tokens, wants_logits=True)])
    first = chosen(model, SampleRow(S0, GREEDY, 0.0))
    model.forward([Run(S0, 2, first, wants_logits=True)])
    assert [*first, *chosen(model, SampleRow(S0, GREEDY, 0.0))] == [*b"ab"]


def test_an_answer_evaluated_again_goes_on_where_it_was() -> None:
    model = engine()
    prompt = model.vocabulary.encode("p", add_special=True, parse_special=False)
    model.forward([Run(S1, 0, [*prompt, *(Token(byte) for byte in b"1 2 ")], wants_logits=True)])
    assert chosen(model, SampleRow(S1, GREEDY, 0.0)) == [ord("3")]


def test_draws_fall_on_the_known_distribution() -> None:
    model = engine()
    free = Sampling(top_k=0, top_p=1, min_p=0, temperature=1)
    prompt = model.vocabulary.encode("p", add_special=True, parse_special=False)
    model.forward([Run(S0, 0, prompt, wants_logits=True)])
    draws = (0.0, 0.69, 0.71, 0.89, 0.91, 0.999)
    drawn = chosen(model, *(SampleRow(S0, free, draw) for draw in draws))
    assert bytes(drawn) == b"11xxyy"
    narrow = Sampling(top_k=0, top_p=0.75, min_p=0, temperature=1)
    assert bytes(chosen(model, SampleRow(S0, narrow, 0.999))) == b"x"
    assert bytes(chosen(model, SampleRow(S0, Sampling(top_k=0, top_p=1, min_p=0.2), 0.999))) == b"x"


def test_markers_in_a_text_are_tokens_only_when_asked_for() -> None:
    vocabulary = ByteVocabulary()
    assert vocabulary.encode("<|end|>a<|answer|>", add_special=False, parse_special=True) == [END, ord("a"), ANSWER]
    plain = vocabulary.encode("<|end|>", add_special=True, parse_special=False)
    assert (plain[0], bytes(plain[1:-1]), plain[-1]) == (BEGIN, b"<|end|>", ANSWER)


def test_loading_takes_its_time_in_steps_and_tells_its_progress() -> None:
    told: list[float] = []
    QuickEngine.load(request({"load_seconds": 5}), lambda fraction: not told.append(fraction))
    assert told == [step / 10 for step in range(11)]
    assert QuickEngine.waited == [0.5] * 10


def test_loading_can_be_cancelled() -> None:
    with pytest.raises(LoadError, match="cancelled"):
        FakeEngine.load(request({"load_seconds": 3600}), lambda fraction: False)


def test_a_load_fails_with_the_text_it_was_told() -> None:
    with pytest.raises(LoadError) as caught:
        engine(load_fails="the disk is on fire")
    assert str(caught.value) == "the disk is on fire"
    assert not caught.value.out_of_memory
    with pytest.raises(LoadError, match="no knob 'unknown'"):
        engine(unknown=1)


def test_the_first_loads_of_a_model_run_out_of_memory() -> None:
    for _ in range(2):
        with pytest.raises(LoadError) as caught:
            engine(model="fake:greedy", out_of_memory_loads=2)
        assert caught.value.out_of_memory
    engine(model="fake:greedy", out_of_memory_loads=2)


def test_a_smaller_placement_fits_where_a_larger_one_ran_out_of_memory() -> None:
    settings: dict[str, KnobValue] = {"bytes": 1000, "kv_bytes": 1, "out_of_memory_above": 2000}
    with pytest.raises(LoadError) as caught:
        QuickEngine.load(request(settings, placement=Placement("cpu", 600, 2, 1)), quietly)
    assert caught.value.out_of_memory
    fitting = QuickEngine.load(request(settings, placement=Placement("cpu", 500, 2, 1)), quietly)
    assert fitting.memory() == MemoryUse(weights_bytes=1000, kv_bytes=1000)


def test_it_can_lie_about_its_memory() -> None:
    assert engine(bytes=10).memory().total_bytes == 10
    assert engine(bytes=10, measured_bytes=99).memory().total_bytes == 99


def test_a_step_takes_its_time_once_for_all_new_tokens_and_once_for_each_prompt() -> None:
    model = engine(tokens_per_second=10, prompt_tokens_per_second=100)
    model.forward([Run(S0, 0, [BEGIN] * 5, wants_logits=True), Run(S1, 0, [BEGIN] * 20, wants_logits=True)])
    model.forward([Run(S0, 5, [BEGIN], wants_logits=True), Run(S1, 20, [BEGIN], wants_logits=True)])
    assert model.waited == [0.05, 0.2, 0.1]


def test_it_crashes_at_the_token_it_was_told() -> None:
    model = engine(crash_at_token=3)
    answer(model, "p", 2)
    assert model.killed == 0
    answer(model, "p", 1)
    assert model.killed == 1


@pytest.mark.parametrize("knob", ["crash_at_token=1", "crash_at_load=1"])
def test_a_crash_kills_the_process_for_real(knob: str) -> None:
    script = f"""
from enclave_fake.engine import *
from enclave_fake.plugin import FakeSource
from enclaved.plugin.engine import *
from enclaved.plugin.model import ModelHeader
entry = FakeSource().resolve("fake:a?{knob}", None)
engine = FakeEngine.load(
    LoadRequest("a", (), entry.header, Placement("cpu", 100, 1, 1), entry.settings), lambda fraction: True)
engine.forward([Run(SequenceId(0), 0, [ANSWER], True)])
print("alive", flush=True)
engine.sample([SampleRow(SequenceId(0), Sampling(), 0.0)])
print("still alive")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == ("" if "load" in knob else "alive\n")


def test_a_step_that_never_answers_ends_by_an_interrupt() -> None:
    model = FakeEngine(Knobs(never_answer=True), PLACEMENT)
    thread = threading.Thread(target=model.interrupt)
    thread.start()
    with pytest.raises(InterruptedStepError):
        model.forward([Run(S0, 0, [BEGIN], wants_logits=True)])
    thread.join()
    assert model.length(S0) == 0


class InterruptedInItsSecondRun(FakeEngine):
    @staticmethod
    def wait(event: threading.Event, seconds: float | None) -> bool:
        return seconds == 0.2


@pytest.mark.parametrize(("trim", "left"), [(True, 4), (False, 0)])
def test_an_interrupt_keeps_what_was_finished_but_for_the_token_whose_logits_are_gone(trim: bool, left: int) -> None:
    model = InterruptedInItsSecondRun(Knobs(prompt_tokens_per_second=100, trim=trim), PLACEMENT)
    with pytest.raises(InterruptedStepError):
        model.forward([Run(S0, 0, [BEGIN] * 5, wants_logits=True), Run(S1, 0, [BEGIN] * 20, wants_logits=True)])
    assert (model.length(S0), model.length(S1)) == (left, 0)
    with pytest.raises(EngineError, match="no logits"):
        model.sample([SampleRow(S0, GREEDY, 0.0)])
    with pytest.raises(InterruptedStepError):
        model.forward([Run(S1, 0, [BEGIN] * 20, wants_logits=True)])
    assert (model.length(S0), model.length(S1)) == (left, 0)


def test_an_interrupt_keeps_all_of_a_finished_chunk_without_logits() -> None:
    model = InterruptedInItsSecondRun(Knobs(prompt_tokens_per_second=100), PLACEMENT)
    with pytest.raises(InterruptedStepError):
        model.forward([Run(S0, 0, [BEGIN] * 5, wants_logits=False), Run(S1, 0, [BEGIN] * 20, wants_logits=True)])
    assert (model.length(S0), model.length(S1)) == (5, 0)


def test_a_deaf_engine_is_not_interrupted() -> None:
    model = FakeEngine(Knobs(deaf=True), PLACEMENT)
    model.interrupt()
    model.forward([Run(S0, 0, [BEGIN], wants_logits=True)])
    assert model.length(S0) == 1


def test_all_sequences_share_the_cells() -> None:
    model = engine(cells=10)
    model.forward([Run(S0, 0, [BEGIN] * 6, wants_logits=False)])
    with pytest.raises(NoRoomError):
        model.forward([Run(S1, 0, [BEGIN] * 5, wants_logits=False)])
    model.forward([Run(S1, 0, [BEGIN] * 4, wants_logits=False)])


def test_the_limits_in_force_are_the_knobs_where_they_are_less() -> None:
    limits = engine(context=100, sequences=2).capabilities
    assert (limits.context, limits.sequences) == (100, 2)
    limits = engine(context=100_000, sequences=200).capabilities
    assert (limits.context, limits.sequences) == (PLACEMENT.context, PLACEMENT.sequences)


def test_a_closed_engine_refuses_to_work() -> None:
    model = engine()
    model.close()
    uses: list[Callable[[], object]] = [lambda: model.forward([]), lambda: model.sample([]), lambda: model.length(S0)]
    for use in uses:
        with pytest.raises(EngineError):
            use()
