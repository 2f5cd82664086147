"""The byte vocabulary, as an inspector opens it."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_fake.engine import BEGIN, END, ByteVocabulary
from enclave_fake.plugin import FakeBackend
from enclaved.plugin.engine import Token


def test_the_backend_names_its_opener() -> None:
    assert FakeBackend.vocabulary is not None
    module, _, function = FakeBackend.vocabulary.partition(":")
    vocabulary = getattr(importlib.import_module(module), function)([])
    assert isinstance(vocabulary, ByteVocabulary)
    vocabulary.close()


@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    vocabulary = ByteVocabulary()
    tokens = vocabulary.encode(text, add_special=False, parse_special=False)
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()


@given(st.text())
def test_what_is_added_has_no_text(text: str) -> None:
    vocabulary = ByteVocabulary()
    tokens = vocabulary.encode(text, add_special=True, parse_special=False)
    assert tokens[0] == BEGIN
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="not in the vocabulary"):
        ByteVocabulary().piece(Token(wrong))


def test_the_end_ends() -> None:
    assert ByteVocabulary().ends_generation(END)
