"""The engine on a model with random weights: steps, bounds, interruption, cutting, loading and what loading refuses."""

from __future__ import annotations

import math
import struct
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enclaved.plugin.engine import (
    EngineError,
    InterruptedStepError,
    LoadError,
    LoadRequest,
    NoRoomError,
    OpenFile,
    Placement,
    Run,
    SampleRow,
    Sampling,
    SequenceId,
    Token,
)
from enclaved.plugin.model import FileRole, ModelHeader
from plugins.llama_cpp.tests.conftest import LoadEngine
from plugins.llama_cpp.tests.tiny_gguf import STRING, U32, Tensor, tiny_llama

if TYPE_CHECKING:
    from enclave_llama_cpp.engine import LlamaCppEngine

A, B, C, D = (SequenceId(number) for number in range(4))
GREEDY = Sampling(temperature=0)
PROMPT = [Token(1), *(Token(260 + number) for number in range(20))]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().encode())
    return path


def step(engine: LlamaCppEngine, sequence: SequenceId, tokens: Sequence[Token]) -> Token:
    """Evaluates `tokens` at the end of the sequence; the likeliest next token."""
    engine.forward([Run(sequence, engine.length(sequence), tokens, wants_logits=True)])
    return engine.sample([SampleRow(sequence, GREEDY, 0.0)])[0].token


def continued(engine: LlamaCppEngine, sequence: SequenceId, prompt: Sequence[Token], count: int) -> list[Token]:
    tokens = [step(engine, sequence, prompt)]
    while len(tokens) < count:
        tokens.append(step(engine, sequence, [tokens[-1]]))
    return tokens


def test_a_prompt_in_chunks_gives_what_it_gives_at_once(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    expected = continued(engine, A, PROMPT, 20)
    engine.forward([Run(B, 0, PROMPT[:7], wants_logits=False)])
    engine.forward([Run(B, 7, PROMPT[7:9], wants_logits=False)])
    assert continued(engine, B, PROMPT[9:], 20) == expected
    assert engine.length(B) == len(PROMPT) + 19
    assert len(set(expected)) > 1


def test_the_same_seed_draws_the_same_alone_and_among_others(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    sampling = Sampling(top_k=40, top_p=0.95, min_p=0.05, temperature=1.5)
    draws = [math.modf(number * 0.618034)[0] for number in range(30)]

    def stream(sequences: Sequence[SequenceId]) -> list[list[Token]]:
        for sequence in sequences:
            engine.drop(sequence)
        waiting = [PROMPT[sequence:] for sequence in sequences]
        answers: list[list[Token]] = [[] for _ in sequences]
        for draw in draws:
            engine.forward([Run(s, engine.length(s), w, True) for s, w in zip(sequences, waiting, strict=True)])
            tokens = [each.token for each in engine.sample([SampleRow(s, sampling, draw) for s in sequences])]
            waiting = [[token] for token in tokens]
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        return answers

    together = stream([A, B, C, D])
    assert [stream([sequence])[0] for sequence in (A, B, C, D)] == together


def test_a_sequence_is_cut_and_goes_on_as_if_never_longer(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    expected = continued(engine, A, PROMPT, 10)
    continued(engine, B, PROMPT[:12], 5)
    assert engine.capabilities.can_trim
    assert engine.trim(B, 12)
    assert engine.length(B) == 12
    assert continued(engine, B, PROMPT[12:], 10) == expected
    engine.drop(B)
    assert engine.length(B) == 0
    assert continued(engine, B, PROMPT, 10) == expected


def test_cutting_takes_the_logits_away(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    step(engine, A, PROMPT)
    assert engine.trim(A, 3)
    with pytest.raises(EngineError, match="no logits"):
        engine.sample([SampleRow(A, GREEDY, 0.0)])


def test_cutting_beyond_the_end_is_an_error(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    step(engine, A, PROMPT)
    for length in (-1, len(PROMPT) + 1):
        with pytest.raises(EngineError, match="cannot be cut"):
            engine.trim(A, length)


def test_only_asked_for_logits_can_be_sampled(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    engine.forward([Run(A, 0, PROMPT, wants_logits=False), Run(B, 0, PROMPT, wants_logits=True)])
    engine.sample([SampleRow(B, GREEDY, 0.0)])
    for sequence in (A, C):
        with pytest.raises(EngineError, match="no logits"):
            engine.sample([SampleRow(sequence, GREEDY, 0.0)])


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([], "at least one run"),
        ([Run(A, 0, [], True)], "no tokens"),
        ([Run(SequenceId(4), 0, PROMPT, True)], "no sequence 4"),
        ([Run(SequenceId(-1), 0, PROMPT, True)], "no sequence -1"),
        ([Run(A, 1, PROMPT, True)], "starts at 1"),
        ([Run(A, 0, PROMPT, True), Run(A, 21, PROMPT, True)], "one run a sequence"),
        ([Run(A, 0, [Token(287)], True)], "vocabulary"),
        ([Run(A, 0, [Token(-1)], True)], "vocabulary"),
        ([Run(A, 0, [Token(2**40)], True)], "vocabulary"),
        ([Run(A, 0, PROMPT * 30, True)], "too big"),
    ],
)
def test_a_wrong_step_is_refused_before_llama_cpp_sees_it(
    tiny: Path, load_engine: LoadEngine, runs: list[Run], told: str
) -> None:
    engine = load_engine(tiny)
    with pytest.raises(EngineError, match=told):
        engine.forward(runs)
    assert [engine.length(sequence) for sequence in (A, B, C, D)] == [0, 0, 0, 0]
    assert step(engine, A, PROMPT) >= 0


def test_a_step_beyond_the_context_changes_nothing(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny, context=20)
    assert engine.capabilities.context == 20
    with pytest.raises(NoRoomError, match="20 are the most"):
        engine.forward([Run(B, 0, PROMPT[:3], True), Run(A, 0, PROMPT, True)])
    assert engine.length(B) == 0
    step(engine, A, PROMPT[:20])
    with pytest.raises(NoRoomError):
        engine.forward([Run(A, 20, PROMPT[:1], True)])
    assert engine.length(A) == 20


def test_every_sequence_has_its_whole_context(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny, context=256)
    for sequence in (A, B, C, D):
        continued(engine, sequence, [Token(1 + number % 280) for number in range(255)], 2)
    assert [engine.length(sequence) for sequence in (A, B, C, D)] == [256] * 4


def test_an_interrupted_step_can_be_gone_on_from(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny, context=512)
    prompt = [Token(3 + number % 280) for number in range(500)]
    expected = continued(engine, A, prompt, 5)
    neighbour = continued(engine, B, PROMPT, 2)
    done = threading.Event()

    def interrupt_again_and_again() -> None:
        while not done.is_set():
            engine.interrupt()

    thread = threading.Thread(target=interrupt_again_and_again)
    thread.start()
    try:
        with pytest.raises(InterruptedStepError):
            engine.forward([Run(C, 0, prompt, True), Run(B, engine.length(B), neighbour[-1:], True)])
    finally:
        done.set()
        thread.join()
    with pytest.raises(EngineError, match="no logits"):
        engine.sample([SampleRow(B, GREEDY, 0.0)])
    left = engine.length(C)
    assert left < len(prompt)
    assert engine.length(B) <= len(PROMPT) + 1
    assert continued(engine, C, prompt[left:], 5) == expected
    fed = [*PROMPT, *neighbour]
    continued(engine, D, PROMPT, 3)
    assert step(engine, B, fed[engine.length(B) :]) == step_after(engine, fed)


def step_after(engine: LlamaCppEngine, tokens: Sequence[Token]) -> Token:
    engine.drop(A)
    return step(engine, A, tokens)


def test_an_interrupt_between_steps_does_not_stop_the_next(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    engine.interrupt()
    step(engine, A, PROMPT)
    assert engine.length(A) == len(PROMPT)


def test_threads_can_be_changed_between_steps(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    expected = continued(engine, A, PROMPT, 6)
    engine.set_threads(2)
    assert continued(engine, B, PROMPT, 3) == expected[:3]
    engine.set_threads(1)
    assert continued(engine, B, [expected[2]], 3) == expected[3:]
    assert engine.capabilities.threads == "exact"
    with pytest.raises(EngineError):
        engine.set_threads(0)


def test_a_closed_engine_says_so(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    engine.vocabulary.piece(Token(262))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="unloaded"):
        engine.forward([Run(A, 0, PROMPT, True)])
    with pytest.raises(EngineError, match="unloaded"):
        engine.vocabulary.encode("a", add_special=False, parse_special=False)
    assert "closed" in repr(engine)


def test_text_goes_to_tokens_and_back(tiny: Path, load_engine: LoadEngine) -> None:
    vocabulary = load_engine(tiny).vocabulary
    assert vocabulary.size == 287
    text = "die öde 🌙 <s> welt."
    tokens = vocabulary.encode(text, add_special=True, parse_special=False)
    assert tokens[0] == 1
    assert 1 not in tokens[1:]
    assert b"".join(vocabulary.piece(token) for token in tokens).decode() == " " + text
    assert vocabulary.encode("<s>", add_special=False, parse_special=True) == [1]
    assert vocabulary.encode("", add_special=True, parse_special=False) == [1]
    assert vocabulary.encode("", add_special=False, parse_special=False) == []
    assert vocabulary.piece(Token(1)) == b""
    assert vocabulary.encode("a\x00\ud800b", add_special=False, parse_special=False)


def test_end_of_generation_is_the_models_word(tiny: Path, load_engine: LoadEngine) -> None:
    vocabulary = load_engine(tiny).vocabulary
    assert [vocabulary.ends_generation(Token(token)) for token in (1, 2, 262)] == [False, True, False]


@pytest.mark.parametrize("token", [-1, 287, 2**31, 2**63])
def test_a_token_outside_the_vocabulary_is_a_value_error(tiny: Path, load_engine: LoadEngine, token: int) -> None:
    vocabulary = load_engine(tiny).vocabulary
    with pytest.raises(ValueError, match="not in the vocabulary"):
        vocabulary.piece(Token(token))
    with pytest.raises(ValueError, match="not in the vocabulary"):
        vocabulary.ends_generation(Token(token))


def test_loading_reports_progress_and_can_be_cancelled(tiny: Path, load_engine: LoadEngine) -> None:
    seen: list[float] = []
    load_engine(tiny, progress=lambda fraction: not seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(LoadError, match="cancelled"):
        load_engine(tiny, progress=lambda _: False)


def test_an_error_of_the_progress_receiver_is_not_swallowed(tiny: Path, load_engine: LoadEngine) -> None:
    def broken(_: float) -> bool:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        load_engine(tiny, progress=broken)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


def test_the_descriptor_stays_the_callers(tiny: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(tiny)
    expected = continued(engine, A, PROMPT, 3)
    opened = open_descriptors()
    again = load_engine(tiny)
    assert continued(again, A, PROMPT, 3) == expected
    again.close()
    assert open_descriptors() == opened


def load_error(load_engine: LoadEngine, path: Path, **fields: Any) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_engine(path, **fields)
    return caught.value


def test_an_unknown_architecture_is_named(tmp_path: Path, load_engine: LoadEngine) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_llama(changes={"general.architecture": (STRING, "phantom")}).encode())
    error = load_error(load_engine, path)
    assert "unknown model architecture: 'phantom'" in str(error)
    assert not error.out_of_memory


def test_a_missing_tensor_is_named(tmp_path: Path, load_engine: LoadEngine) -> None:
    model = tiny_llama()
    model.tensors = [tensor for tensor in model.tensors if tensor.name != "blk.1.ffn_up.weight"]
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.encode())
    assert "blk.1.ffn_up.weight" in str(load_error(load_engine, path))


def test_a_failed_load_leaves_room_for_the_next(tmp_path: Path, tiny: Path, load_engine: LoadEngine) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_llama(changes={"llama.feed_forward_length": (U32, 65)}).encode())
    opened = open_descriptors()
    load_error(load_engine, path)
    assert open_descriptors() == opened
    step(load_engine(tiny), A, PROMPT)


@pytest.mark.parametrize("fields", [{"sequences": 0}, {"sequences": 257}, {"context": 0}, {"threads": 0}])
def test_a_senseless_placement_is_refused(tiny: Path, load_engine: LoadEngine, fields: dict[str, Any]) -> None:
    load_error(load_engine, tiny, **fields)


def test_what_exceeds_the_machine_is_refused_before_it_is_allocated(tiny: Path, load_engine: LoadEngine) -> None:
    error = load_error(load_engine, tiny, context=2**31 // 256, sequences=256)
    assert error.out_of_memory
    assert "GiB" in str(error)


@pytest.mark.parametrize(
    ("roles", "told"),
    [(("weights", "shard"), "several files"), (("shard",), "several files"), (("weights", "adapter"), "adapter")],
)
def test_files_beside_the_weights_are_refused(
    tiny: Path, load_engine: LoadEngine, roles: tuple[FileRole, ...], told: str
) -> None:
    engine_class = type(load_engine(tiny))
    with tiny.open("rb") as file:
        files = [OpenFile(role, "tiny.gguf", file.fileno(), tiny.stat().st_size) for role in roles]
        placement = Placement("cpu", context=128, sequences=1, threads=1)
        request = LoadRequest("tiny", files, ModelHeader("gguf", "llama"), placement)
        with pytest.raises(LoadError, match=told):
            engine_class.load(request, lambda _: True)


def test_a_descriptor_that_is_not_open_is_a_load_error(tiny: Path, load_engine: LoadEngine) -> None:
    engine_class = type(load_engine(tiny))
    placement = Placement("cpu", context=128, sequences=1, threads=1)
    request = LoadRequest("tiny", [OpenFile("weights", "t", 10_000, 1)], ModelHeader("gguf", "llama"), placement)
    with pytest.raises(LoadError, match="cannot be read"):
        engine_class.load(request, lambda _: True)


def test_repacked_weights_are_held_once(tmp_path: Path, load_engine: LoadEngine) -> None:
    """Q4_0 weights become another layout of the same size on most processors; the file's own is not kept."""
    model = tiny_llama()
    chance = array("B", range(256)).tobytes()
    for number, tensor in enumerate(model.tensors):
        if len(tensor.dimensions) == 2:
            rows = math.prod(tensor.dimensions) // 32
            block = struct.pack("<e", 0.01) + chance[number : number + 16]
            model.tensors[number] = Tensor(tensor.name, tensor.dimensions, block * rows, type_id=2)
    path = tmp_path / "q4.gguf"
    path.write_bytes(model.encode())
    engine = load_engine(path)
    weights_bytes = sum(len(tensor.data) for tensor in model.tensors)
    memory = engine.memory()
    assert memory.weights_bytes + memory.other_bytes == pytest.approx(weights_bytes, abs=3 * 2**20 // 100)
    assert step(engine, A, PROMPT) >= 0


def test_superpoint_is_refused_by_the_name_of_its_architecture(shared_models: Path, load_engine: LoadEngine) -> None:
    error = load_error(load_engine, shared_models / "odd" / "superpoint.gguf")
    assert "unknown model architecture: 'superpoint'" in str(error)


def test_odd_vocabularies_work(shared_models: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(shared_models / "odd" / "llama-2-tiny-random.gguf")
    assert engine.vocabulary.size == 32_000
    tokens = engine.vocabulary.encode("The café — 東京", add_special=False, parse_special=False)
    assert b"".join(engine.vocabulary.piece(token) for token in tokens).decode() == " The café — 東京"
    step(engine, A, tokens)
