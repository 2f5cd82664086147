"""Vocabularies opened on their own: the tokens of the goldens, and text that comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.plugin.engine import EngineError, OpenFile, Token
from plugins.llama_cpp.tests.tiny_gguf import tiny_bert, tiny_llama

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.vocabulary import OpenedVocabulary, open_vocabulary

TOKENIZERS = Path(__file__).parents[4] / "shared" / "tokenizers"
SEPARATOR = "\n__ggml_vocab_test__\n"

Open = Callable[[Path], OpenedVocabulary]


@pytest.fixture
def opened() -> Generator[Open]:
    with ExitStack() as stack:

        def open_it(path: Path) -> OpenedVocabulary:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                vocabulary = open_vocabulary([OpenFile("weights", path.name, descriptor, path.stat().st_size)])
            finally:
                os.close(descriptor)
            stack.callback(vocabulary.close)
            return vocabulary

        yield open_it


def golden_cases(path: Path) -> list[tuple[str, list[int]]]:
    """(text, ids) of each case beside a vocabulary."""
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")
    return [(text, list(map(int, line.split()))) for text, line in zip(texts, lines, strict=False)]


def test_tokens_are_those_of_the_goldens(opened: Open) -> None:
    if not TOKENIZERS.is_dir():
        pytest.skip("needs the vocabularies in ../shared/tokenizers, which are not part of a clone")
    count = 0
    wrong: list[str] = []
    for path in sorted(TOKENIZERS.glob("*.gguf")):
        vocabulary = opened(path)
        for text, ids in golden_cases(path):
            count += 1
            if vocabulary.encode(text, add_special=False, parse_special=False) != ids:
                wrong.append(f"{path.name}: {text!r}")
    assert not wrong
    assert count == 281


def test_text_comes_back_from_the_goldens_tokens(opened: Open) -> None:
    if not TOKENIZERS.is_dir():
        pytest.skip("needs the vocabularies in ../shared/tokenizers, which are not part of a clone")
    for path in sorted(TOKENIZERS.glob("*.gguf")):
        vocabulary = opened(path)
        for text, ids in golden_cases(path):
            back = b"".join(vocabulary.piece(Token(token)) for token in ids).decode("utf-8", "replace")
            assert back in (text, f" {text}"), f"{path.name}: {text!r}"


@pytest.fixture
def tiny(tmp_path: Path, opened: Open) -> OpenedVocabulary:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama().encode())
    return opened(path)


def test_a_vocabulary_needs_no_weights(tmp_path: Path, opened: Open, tiny: OpenedVocabulary) -> None:
    model = tiny_llama()
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(type(model)(model.pairs, []).encode())
    alone = opened(path)
    assert alone.size == tiny.size
    assert alone.encode("hello", add_special=True, parse_special=False) == tiny.encode(
        "hello", add_special=True, parse_special=False
    )


def test_an_encoders_vocabulary_adds_its_ends(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "encoder.gguf"
    path.write_bytes(tiny_bert().encode())
    vocabulary = opened(path)
    assert vocabulary.encode("", add_special=True, parse_special=False) == [2, 3]


def test_any_text_comes_back(tiny: OpenedVocabulary) -> None:
    @given(st.text(max_size=60))
    @settings(deadline=None)
    def comes_back(text: str) -> None:
        tokens = tiny.encode(text, add_special=False, parse_special=False)
        back = b"".join(map(tiny.piece, tokens)).decode("utf-8", "replace")
        assert back in (f" {text}", text)

    comes_back()


def test_a_megabyte_is_tokenised_beside_other_threads(tiny: OpenedVocabulary) -> None:
    text = "hello " * 170_000
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(len(tiny.encode(text, add_special=False, parse_special=False))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[0] == counts[1] >= len(text)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 100])
def test_what_is_no_vocabulary_is_an_error(tmp_path: Path, opened: Open, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError):
        opened(path)
    with pytest.raises(EngineError):
        open_vocabulary([])


def test_a_closed_vocabulary_says_so(tiny: OpenedVocabulary) -> None:
    tiny.close()
    tiny.close()
    with pytest.raises(EngineError, match="unloaded"):
        tiny.encode("x", add_special=False, parse_special=False)
