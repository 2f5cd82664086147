"""An inspector with vocabularies: it answers, keeps a few open, and refuses with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_engine import SmallVocabulary

from enclave.protocol.bodies import DetokenizeParams, DetokenizeResult, TokenizeParams, TokenizeResult
from enclave.protocol.codec import decode
from enclave.protocol.methods import write_body
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.link.messages import FromChild, UseVocabulary, VocabularyRefused, VocabularyUsed
from enclaved.plugin.engine import EngineError, OpenFile, Token, Vocabulary
from enclaved.worker import vocabularies
from enclaved.worker.vocabularies import OPEN_MAX, Vocabularies


class Opened(SmallVocabulary):
    closed = 0

    def close(self) -> None:
        Opened.closed += 1


class Wordy(SmallVocabulary):
    """Each token is a text of 20 bytes."""

    def piece(self, token: Token) -> bytes:
        return b"twenty bytes of text"


Ask = Callable[..., FromChild]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks for `method` with a file of this content, which an opener of the test opens."""
    Opened.closed = 0
    asked = Vocabularies()

    def ask(content: str, method: str = "tokenize", body: bytes = b"", opener: object = None) -> FromChild:
        def open_it(files: Sequence[OpenFile]) -> Vocabulary:
            (file,) = files
            opened.append(os.pread(file.descriptor, file.size_bytes, 0).decode())
            return Opened()

        def load_attribute(_: str) -> object:
            return opener or open_it

        monkeypatch.setattr(vocabularies, "load_attribute", load_attribute)
        path = tmp_path / content
        if not path.exists():
            path.write_text(content)
        descriptor = os.open(path, os.O_RDONLY)
        job = UseVocabulary(3, "module:function", [["weights", path.name, len(content)]], method, body)
        answer = asked.answer(job, [descriptor])
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(descriptor)
        return answer

    opened: list[str] = []
    vars(ask)["opened"] = opened
    return ask


def tokens_of(text: str) -> bytes:
    return write_body(TokenizeParams(text=text))


def test_text_becomes_tokens_and_tokens_text(ask: Ask) -> None:
    used = ask("a", "tokenize", tokens_of("hé"))
    assert isinstance(used, VocabularyUsed)
    assert used.job == 3
    tokens = decode(TokenizeResult, unpack(used.body, BODY_LIMITS, "body")).tokens
    assert bytes(tokens) == "hé".encode()
    back = ask("a", "detokenize", write_body(DetokenizeParams(tokens=tokens)))
    assert isinstance(back, VocabularyUsed)
    assert decode(DetokenizeResult, unpack(back.body, BODY_LIMITS, "body")).text == "hé"


def test_the_last_few_stay_open(ask: Ask) -> None:
    names = [f"file{number}" for number in range(OPEN_MAX + 1)]
    for name in (*names, names[-1], names[0]):
        ask(name, "tokenize", tokens_of("x"))
    assert vars(ask)["opened"] == [*names, names[0]]
    assert Opened.closed == 2


@pytest.mark.parametrize(
    ("method", "body", "code", "field"),
    [
        ("tokenize", b"\xc1", "bad_request", "body"),
        ("tokenize", b"\x80", "bad_request", "text"),
        ("tokenize", tokens_of("x" * 10_001), "bad_request", "text"),
        ("detokenize", write_body(DetokenizeParams(tokens=(1, 512))), "bad_request", "tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    ask: Ask, method: str, body: bytes, code: str, field: str | None
) -> None:
    refused = ask("a", method, body)
    assert isinstance(refused, VocabularyRefused)
    assert (refused.code, refused.field) == (code, field)
    assert isinstance(ask("a", "tokenize", tokens_of("still there")), VocabularyUsed)


@pytest.mark.parametrize("error", [EngineError("no vocabulary"), OSError("gone"), RuntimeError("secret detail")])
def test_a_file_that_cannot_be_opened_is_refused_and_nothing_kept(ask: Ask, error: Exception) -> None:
    def fails(files: Sequence[OpenFile]) -> Vocabulary:
        raise error

    refused = ask("a", "tokenize", tokens_of("x"), opener=fails)
    assert isinstance(refused, VocabularyRefused)
    assert refused.code == "bad_model_file"
    assert "secret" not in refused.message
    assert isinstance(ask("a", "tokenize", tokens_of("x")), VocabularyUsed)


@pytest.mark.parametrize(
    ("method", "fits", "too_large"),
    [
        ("tokenize", tokens_of("12345678"), tokens_of("123456789")),
        ("detokenize", write_body(DetokenizeParams(tokens=(1,) * 4)), write_body(DetokenizeParams(tokens=(1,) * 5))),
        ("detokenize", write_body(DetokenizeParams(tokens=(1,) * 4)), write_body(DetokenizeParams(tokens=(1,) * 8))),
    ],
)
def test_an_answer_that_a_client_could_not_read_is_refused(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, method: str, fits: bytes, too_large: bytes
) -> None:
    monkeypatch.setattr(vocabularies, "BODY_LIMITS", replace(BODY_LIMITS, array_items=8, frame_bytes=100))

    def open_it(files: Sequence[OpenFile]) -> Vocabulary:
        return Wordy()

    assert isinstance(ask("a", method, fits, opener=open_it), VocabularyUsed)
    refused = ask("a", method, too_large, opener=open_it)
    assert isinstance(refused, VocabularyRefused)
    assert (refused.code, refused.field) == ("too_large", "body")
