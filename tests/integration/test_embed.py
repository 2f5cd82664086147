"""Vectors and rankings over the wire, from a real model in a real worker."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import enclave
from plugins.llama_cpp.tests.tiny_gguf import tiny_bert
from tests.running import RunningDaemon, run_enclave

pytestmark = pytest.mark.usefixtures("llama_cpp")


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    path = tmp_path / "encoder.gguf"
    path.write_bytes(tiny_bert().encode())
    return str(path)


@pytest.fixture
def ranker(tmp_path: Path) -> str:
    path = tmp_path / "ranker.gguf"
    path.write_bytes(tiny_bert(ranks=True).encode())
    return str(path)


def test_vectors_over_the_wire_are_those_of_the_reference(daemon: RunningDaemon, shared_models: Path) -> None:
    folder = shared_models / "all-MiniLM-L6-v2"
    cases = json.loads((folder / "golden.json").read_text())
    with daemon.client() as client:
        embeddings = client.embed(
            str(folder / "all-MiniLM-L6-v2-f16.gguf"),
            [case["text"] for case in cases],
            truncate_to=max(case["tokens"] for case in cases),
        )
    assert embeddings.vectors.shape == (len(cases), 384)
    for case, vector in zip(cases, cast("Any", embeddings.vectors.tolist()), strict=True):
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
        assert dot(vector, case["embedding"]) / math.hypot(*case["embedding"]) >= 0.9999
    assert embeddings.usage.prompt_tokens == sum(case["tokens"] for case in cases)
    assert embeddings.truncated == tuple(number for number, case in enumerate(cases) if len(case["text"]) > 1000)


def test_a_thousand_texts_are_one_request(daemon: RunningDaemon, encoder: str) -> None:
    texts = [f"text {chr(97 + number % 26)}" for number in range(1000)]
    with daemon.client() as client:
        vectors: Any = client.embed(encoder, texts).vectors.tolist()
        (one,) = cast("Any", client.embed(encoder, texts[27]).vectors.tolist())
    assert len(vectors) == 1000
    assert dot(vectors[27], one) == pytest.approx(1.0, abs=1e-3)
    assert dot(vectors[1], one) == pytest.approx(1.0, abs=1e-3)


def test_what_a_model_is_not_for_is_an_error_that_says_what_it_is_for(daemon: RunningDaemon, encoder: str) -> None:
    with daemon.client() as client:
        with pytest.raises(enclave.UnsupportedError, match="makes vectors; it generates no text"):
            client.generate(encoder, "once").result()
        with pytest.raises(enclave.UnsupportedError, match="generates text; it was not trained to make vectors"):
            client.embed("tiny", "once")
        with pytest.raises(enclave.ContextExceededError, match=r"texts\[1\] has 102 tokens; the model takes 64"):
            client.embed(encoder, ["a", "a " * 100])
        assert client.embed(encoder, ["a", "a " * 100], truncate_to=64).truncated == (1,)


def test_documents_are_ranked(daemon: RunningDaemon, ranker: str) -> None:
    documents = ["a", "b", "c d e"]
    with daemon.client() as client:
        ranking = client.rerank(ranker, "who", documents).ranking
        (best,) = client.rerank(ranker, "who", documents, top=1).ranking
    assert sorted(each.index for each in ranking) == [0, 1, 2]
    assert [each.score for each in ranking] == sorted((each.score for each in ranking), reverse=True)
    assert best == ranking[0]


def test_the_commands_print_vectors_and_rankings(daemon: RunningDaemon, encoder: str, ranker: str) -> None:
    told = run_enclave("embed", encoder, "one", "two", "--json", home=daemon.home)
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    assert (len(document["vectors"]), document["dimensions"]) == (2, 32)
    ranked = run_enclave("rerank", ranker, "who", "me", "you", home=daemon.home)
    assert ranked.returncode == 0, ranked.stderr
    assert {"me", "you"} <= set(ranked.stdout.split())
