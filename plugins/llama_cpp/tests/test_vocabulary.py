"""Vocabularies opened on their own: the tokens of the goldens, and text that comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.plugin.engine import EngineError, OpenFile, Token
from plugins.llama_cpp.tests.tiny_gguf import STRING, U32, Gguf, tiny_bert, tiny_llama

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
    def comes_back(text: str) -> None:
        tokens = tiny.encode(text, add_special=False, parse_special=False)
        back = b"".join(map(tiny.piece, tokens)).decode("utf-8", "replace")
        assert back in (f" {text}", text)

    comes_back()


def tiny_bytes(split: str) -> Gguf:
    """A vocabulary alone: a token for each byte, two of more, and the ends; `split` names how texts become words."""
    model = tiny_llama()
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    # The letters by which such vocabularies write bytes: the printable ones are their own, the others follow.
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(rest)}
    tokens = [*(letters[byte] for byte in range(256)), "he", "hel", "<s>", "</s>"]
    for name in ("scores", "unknown_token_id"):
        del model.pairs[f"tokenizer.ggml.{name}"]
    model.pairs |= {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, split),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.token_type": (5, [1] * 258 + [3, 3]),
        "tokenizer.ggml.merges": (STRING, ["h e", "he l"]),
        "tokenizer.ggml.bos_token_id": (U32, 258),
        "tokenizer.ggml.eos_token_id": (U32, 259),
    }
    return Gguf(model.pairs, [])


@pytest.fixture
def in_bytes(tmp_path: Path, opened: Open) -> Callable[[str], OpenedVocabulary]:
    def open_it(split: str) -> OpenedVocabulary:
        path = tmp_path / f"{split}.gguf"
        path.write_bytes(tiny_bytes(split).encode())
        return opened(path)

    return open_it


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken"])
def test_any_text_comes_back_exactly_from_bytes(in_bytes: Callable[[str], OpenedVocabulary], split: str) -> None:
    vocabulary = in_bytes(split)
    assert vocabulary.encode("hello", add_special=False, parse_special=False) == [257, ord("l"), ord("o")]

    @given(st.text(max_size=60))
    def comes_back(text: str) -> None:
        tokens = vocabulary.encode(text, add_special=False, parse_special=False)
        assert b"".join(map(vocabulary.piece, tokens)) == text.encode()

    comes_back()


@pytest.mark.parametrize("split", ["gpt-2", "gpt-4o", "tekken", "deepseek-llm"])
@pytest.mark.parametrize("letter", ["x", " "])
def test_a_word_of_any_length_is_tokenised(
    in_bytes: Callable[[str], OpenedVocabulary], split: str, letter: str
) -> None:
    """llama.cpp recurses once a letter for some vocabularies, which a common stack bears for 25,000."""
    text = letter * 150_000
    tokens = in_bytes(split).encode(text, add_special=False, parse_special=False)
    assert tokens == [ord(letter)] * len(text)


def test_markers_are_text_unless_asked_otherwise(in_bytes: Callable[[str], OpenedVocabulary]) -> None:
    vocabulary = in_bytes("gpt-2")
    plain = vocabulary.encode("<s>", add_special=False, parse_special=False)
    assert plain == list(b"<s>")
    assert vocabulary.encode("<s>", add_special=False, parse_special=True) == [258]
    assert vocabulary.piece(Token(258)) == b""


@pytest.mark.parametrize("wrong", [-1, 260, 2**31 - 1])
def test_an_id_outside_the_vocabulary_never_gets_to_llama_cpp(
    in_bytes: Callable[[str], OpenedVocabulary], wrong: int
) -> None:
    vocabulary = in_bytes("gpt-2")
    with pytest.raises(ValueError, match="260"):
        vocabulary.piece(Token(wrong))
    with pytest.raises(ValueError, match="260"):
        vocabulary.ends_generation(Token(wrong))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux tells them")
def test_an_open_vocabulary_keeps_no_file_open(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "kept.gguf"
    path.write_bytes(tiny_llama().encode())
    vocabulary = opened(path)
    assert path.resolve() not in {each.resolve() for each in Path("/proc/self/fd").iterdir()}
    path.unlink()
    assert vocabulary.encode("hello", add_special=True, parse_special=False)


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
