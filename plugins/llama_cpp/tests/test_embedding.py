"""Vectors and scores: those of the model, alone and beside others, and no way to end the process."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enclave_llama_cpp.gguf import read_header
from enclave_llama_cpp.plugin import LlamaCppBackend
from enclaved.plugin.engine import (
    Engine,
    EngineError,
    InterruptedStepError,
    LoadRequest,
    OpenFile,
    Placement,
    Run,
    SequenceId,
    Token,
)
from plugins.llama_cpp.tests.tiny_gguf import tiny_bert

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.embedding import LlamaCppEmbedder
from enclave_llama_cpp.engine import LlamaCppEngine

Load = Callable[[Path], LlamaCppEmbedder]

ROUNDING = 1e-3
"""By so much values of about 1 may differ: a processor's kernels sum in another order in another batch."""


@pytest.fixture
def load() -> Generator[Load]:
    with ExitStack() as stack:

        def loaded(path: Path) -> LlamaCppEmbedder:
            size_bytes = path.stat().st_size
            with path.open("rb") as file:
                header = read_header(file, size_bytes)
                assert LlamaCppBackend().refuse(header) is None
                placement = Placement(device="cpu", context=512, sequences=4, threads=2, flash_attention=False)
                files = (OpenFile("weights", path.name, file.fileno(), size_bytes),)
                engine: Engine = LlamaCppEngine.load(LoadRequest(path.name, files, header, placement), lambda _: True)
            assert isinstance(engine, LlamaCppEmbedder)
            stack.callback(engine.close)
            return engine

        yield loaded


@pytest.fixture
def tiny(tmp_path: Path, load: Load) -> LlamaCppEmbedder:
    path = tmp_path / "tiny-encoder.gguf"
    path.write_bytes(tiny_bert().encode())
    return load(path)


@pytest.fixture
def ranker(tmp_path: Path, load: Load) -> LlamaCppEmbedder:
    path = tmp_path / "tiny-ranker.gguf"
    path.write_bytes(tiny_bert(ranks=True).encode())
    return load(path)


def tokens(engine: Engine, text: str) -> list[Token]:
    return engine.vocabulary.encode(text, add_special=True, parse_special=False)


def vectors(engine: Engine, *texts: str) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(data, "<f4") for data in engine.pool([tokens(engine, text) for text in texts])])


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_are_those_of_the_reference(shared_models: Path, load: Load) -> None:
    folder = shared_models / "all-MiniLM-L6-v2"
    engine = load(folder / "all-MiniLM-L6-v2-f16.gguf")
    for case in json.loads((folder / "golden.json").read_text()):
        text = tokens(engine, case["text"])
        if len(text) > case["tokens"]:  # the reference cuts at 256, and keeps the last
            text = [*text[: case["tokens"] - 1], text[-1]]
        assert text[: len(case["ids"])] == case["ids"]
        (data,) = engine.pool([text])
        assert cosine(np.frombuffer(data, "<f4"), np.array(case["embedding"])) >= 0.9999


def test_a_text_has_the_same_vector_alone_and_beside_others(tiny: LlamaCppEmbedder) -> None:
    texts = ["a", "hello there", "", "the quick brown fox", "a" * 50]
    together = vectors(tiny, *texts)
    assert together.shape == (5, 32)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(vectors(tiny, text)[0] - vector).max() < ROUNDING
    assert len({vector.tobytes() for vector in together}) == 5


def test_a_thousand_texts_go_in_as_many_calls_as_it_takes(tiny: LlamaCppEmbedder) -> None:
    texts = [f"text {chr(97 + number % 26)} {chr(97 + number // 26 % 26)}" for number in range(1000)]
    one = {text: vectors(tiny, text)[0] for text in texts[:3]}
    limits = tiny.capabilities
    a_call = min(limits.sequences, limits.batch_tokens // 8)
    every = np.concatenate([vectors(tiny, *texts[start : start + a_call]) for start in range(0, 1000, a_call)])
    assert every.shape == (1000, 32)
    for number, text in enumerate(texts[:3]):
        assert np.abs(every[number] - one[text]).max() < ROUNDING


def test_a_ranker_gives_one_score_that_depends_on_both_texts(ranker: LlamaCppEmbedder) -> None:
    assert ranker.capabilities.can_rank
    assert not ranker.capabilities.can_embed
    pairs = [("who", "me"), ("who", "you"), ("why", "me")]
    encoded = [ranker.vocabulary.encode_pair(query, document) for query, document in pairs]
    plain = [ranker.vocabulary.encode(text, add_special=False, parse_special=False) for text in pairs[0]]
    assert encoded[0] == [2, *plain[0], 3, *plain[1], 3]
    scores = [np.frombuffer(data, "<f4") for data in ranker.pool(encoded)]
    assert all(score.shape == (1,) for score in scores)
    assert len({float(score[0]) for score in scores}) == 3
    assert math.isclose(
        float(scores[1][0]), float(np.frombuffer(ranker.pool(encoded[1:2])[0], "<f4")[0]), abs_tol=ROUNDING
    )


def test_what_would_end_the_process_is_refused(tiny: LlamaCppEmbedder) -> None:
    limits = tiny.capabilities
    wrong: list[list[list[Token]]] = [
        [],
        [[]],
        [[Token(-1)]],
        [[Token(tiny.vocabulary.size)]],
        [[Token(5)] * (limits.context + 1)],
        [[Token(5)]] * (limits.sequences + 1),
        [[Token(5)] * limits.context] * (limits.batch_tokens // limits.context + 1),
    ]
    for texts in wrong:
        with pytest.raises(EngineError):
            tiny.pool(texts)
    with pytest.raises(EngineError):
        tiny.forward([Run(SequenceId(0), 0, [Token(5)], True)])
    with pytest.raises(EngineError):
        tiny.sample([])
    with pytest.raises(EngineError):
        tiny.set_threads(0)
    assert vectors(tiny, "still here").shape == (1, 32)


def test_an_interrupt_ends_at_most_one_call(tiny: LlamaCppEmbedder) -> None:
    expected = vectors(tiny, "a" * 40)
    thread = threading.Thread(target=tiny.interrupt)
    thread.start()
    try:
        found = vectors(tiny, "a" * 40)
    except InterruptedStepError:
        found = vectors(tiny, "a" * 40)
    thread.join()
    assert np.abs(found - expected).max() < ROUNDING


def test_threads_memory_and_end(tiny: LlamaCppEmbedder) -> None:
    expected = vectors(tiny, "word")
    tiny.set_threads(1)
    assert np.abs(vectors(tiny, "word") - expected).max() < ROUNDING
    use = tiny.memory()
    assert use.weights_bytes > 0
    assert use.compute_bytes > 0
    tiny.close()
    tiny.close()
    with pytest.raises(EngineError):
        tiny.pool([[Token(5)]])
