"""Trained models against texts that another program, llama2.c, made from the same weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from enclaved.plugin.engine import Run, SampleRow, Sampling, SequenceId, Token
from plugins.llama_cpp.tests.conftest import LoadEngine

if TYPE_CHECKING:
    from enclave_llama_cpp.engine import LlamaCppEngine

GREEDY = Sampling(temperature=0)
FREE = Sampling(top_k=0, top_p=1.0, min_p=0.0)
BOS = Token(1)
POSITIONS = 200
"""Positions of a golden text, prompt included."""

FILES = {
    "stories260K": ("stories260K/stories260K-f32.gguf", "odd/stories260Ktok512.gguf"),
    "llama2xs": ("llama2xs-f32.gguf",),
}
NEAR_TIE = ("llama2xs", '"I want to play," said')
"""Here two tokens are less than 0.001 apart at one place: which one wins hangs on the order of additions, so on the
processor. From there on, only this prompt may go another way."""
NEAR_TIE_TOKENS = 167
NEAR_TIE_CHARACTERS = 260


def answers(engine: LlamaCppEngine, prompts: Sequence[str]) -> list[str]:
    """The greedy texts of all prompts, one sequence each, run together."""
    vocabulary = engine.vocabulary
    held = [vocabulary.encode(prompt, add_special=True, parse_special=False) for prompt in prompts]
    active = list(range(len(prompts)))
    while active:
        engine.forward(
            [
                Run(SequenceId(n), engine.length(SequenceId(n)), held[n][engine.length(SequenceId(n)) :], True)
                for n in active
            ]
        )
        tokens = [each.token for each in engine.sample([SampleRow(SequenceId(n), GREEDY, 0.0) for n in active])]
        for n, token in zip(list(active), tokens, strict=True):
            if token == BOS or vocabulary.ends_generation(token) or len(held[n]) == POSITIONS:
                active.remove(n)
                engine.drop(SequenceId(n))
            else:
                held[n].append(token)
    return [b"".join(map(vocabulary.piece, tokens)).decode("utf-8", "replace").removeprefix(" ") for tokens in held]


def golden(shared_models: Path, name: str) -> dict[str, str]:
    texts: dict[str, str] = json.loads((shared_models / "golden_llama2c.json").read_text())["outputs"][name]
    return texts


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in FILES.items() for path in paths])
def test_the_texts_are_those_of_an_independent_program(
    shared_models: Path, load_engine: LoadEngine, name: str, path: str
) -> None:
    engine = load_engine(shared_models / path, context=256, sequences=1)
    texts = golden(shared_models, name)
    assert len(texts) == 8
    for prompt, expected in texts.items():
        (text,) = answers(engine, [prompt])
        shorter = min(len(text), len(expected))
        assert shorter >= len(expected) - 8, prompt  # a position more or less, at the end
        compared = NEAR_TIE_CHARACTERS if (name, prompt) == NEAR_TIE else shorter
        assert text[:compared] == expected[:compared]


def test_the_near_tie_is_one(shared_models: Path, load_engine: LoadEngine) -> None:
    """What `NEAR_TIE` excuses is true: two tokens less than 0.002 apart, where the golden text may be left."""
    name, prompt = NEAR_TIE
    engine = load_engine(shared_models / FILES[name][0], context=256, sequences=1)
    tokens = engine.vocabulary.encode(golden(shared_models, name)[prompt], add_special=True, parse_special=False)
    engine.forward([Run(SequenceId(0), 0, tokens[:NEAR_TIE_TOKENS], True)])
    first, second = (
        engine.sample(
            [SampleRow(SequenceId(0), Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=temperature), draw)]
        )[0].token
        for temperature, draw in ((0.0, 0.0), (0.01, 0.5))
    )
    # At temperature 0.01 a gap g leaves the winner 1 / (1 + exp(-100 g)): 0.52 for 0.0008, 0.73 for 0.01.
    third = engine.sample([SampleRow(SequenceId(0), Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=0.01), 0.56)])[
        0
    ].token
    assert first == second
    assert third != first


def test_four_streams_together_give_the_texts_they_give_alone(shared_models: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(shared_models / FILES["stories260K"][0], context=256, sequences=4)
    prompts = [prompt for prompt in golden(shared_models, "stories260K") if prompt]
    alone = [answers(engine, [prompt])[0] for prompt in prompts]
    together = answers(engine, prompts[:4]) + answers(engine, prompts[3:])
    assert together == alone[:4] + alone[3:]
    assert len(set(alone)) == len(prompts)


def test_another_quantisation_is_told_apart(shared_models: Path, load_engine: LoadEngine) -> None:
    """The golden texts are sharp: with weights of eight bits none of them comes out."""
    engine = load_engine(shared_models / "stories260K" / "stories260K-q8_0.gguf", context=256, sequences=1)
    texts = golden(shared_models, "stories260K")
    equal = [prompt for prompt, expected in texts.items() if answers(engine, [prompt])[0][:300] == expected[:300]]
    assert len(equal) < len(texts) / 2


def test_default_settings_keep_to_the_golden_text_at_first(shared_models: Path, load_engine: LoadEngine) -> None:
    engine = load_engine(
        shared_models / FILES["stories260K"][0], context=256, sequences=1, kv_type="f16", flash_attention=None
    )
    expected = golden(shared_models, "stories260K")["Once upon a time"]
    (text,) = answers(engine, ["Once upon a time"])
    assert text[:60] == expected[:60]
    assert np.isclose(len(text), len(expected), rtol=0.5)
