"""Tokens over the wire, from vocabularies that no worker has loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import enclave
from plugins.llama_cpp.tests.test_vocabulary import TOKENIZERS, golden_cases
from plugins.llama_cpp.tests.tiny_gguf import STRING, tiny_llama
from tests.running import RunningDaemon, run_enclave


def test_tokens_over_the_wire_are_those_of_the_goldens(daemon: RunningDaemon, llama_cpp: None) -> None:
    if not TOKENIZERS.is_dir():
        pytest.skip("needs the vocabularies in ../shared/tokenizers, which are not part of a clone")
    with daemon.client() as client:
        for path in sorted(TOKENIZERS.glob("*.gguf")):
            for text, ids in golden_cases(path):
                assert client.tokenize(str(path), text, special=False) == ids, f"{path.name}: {text!r}"
                if ids:
                    assert client.detokenize(str(path), ids) in (text, f" {text}")
        assert client.instances() == []


def test_nothing_is_loaded_for_it_and_a_loaded_model_says_the_same(daemon: RunningDaemon, llama_cpp: None) -> None:
    with daemon.client() as client:
        before = client.tokenize("tiny", "Once upon a time")
        assert client.instances() == []
        result = client.generate("tiny", "Once upon a time", max_tokens=1).result()
        assert result.usage.prompt_tokens == len(before)
        assert client.tokenize("tiny", "Once upon a time") == before
        assert client.tokenize("tiny", "Once upon a time", special=False) == before[1:]
        assert client.detokenize("tiny", before).strip() == "Once upon a time"


def test_markers_are_text_unless_asked_otherwise(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        plain = client.tokenize("fake:a", "<|end|>", special=False)
        assert plain == list(b"<|end|>")
        assert client.tokenize("fake:a", "<|end|>", special=False, parse_special=True) == [257]


def test_ids_outside_the_vocabulary_are_refused_by_name(daemon: RunningDaemon, llama_cpp: None) -> None:
    with daemon.client() as client:
        for wrong in (2**31 - 1, 10**6):
            with pytest.raises(enclave.BadRequestError, match=rf"tokens\[1\]: token {wrong} is outside"):
                client.detokenize("tiny", [1, wrong])
        assert client.detokenize("tiny", []) == ""


def test_a_character_in_pieces_is_whole_again(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        assert client.detokenize("fake:a", list("naïve 東京".encode())) == "naïve 東京"
        assert client.detokenize("fake:a", list("東".encode()[:2])) == "\ufffd"


def test_a_long_text_holds_up_nobody_who_reads_headers(daemon: RunningDaemon, llama_cpp: None) -> None:
    with daemon.client() as client:
        tokens = client.tokenize("tiny", "once upon a time " * 60_000)
        assert len(tokens) > 60_000
        assert client.show("tiny").header is not None


def test_a_vocabulary_that_ends_its_reader_is_an_error_and_the_next_is_read(
    daemon: RunningDaemon, tmp_path: Path, llama_cpp: None
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_llama(changes={"tokenizer.ggml.model": (STRING, "unheard of")}).encode())
    with daemon.client() as client:
        with pytest.raises(enclave.BadModelFileError, match="vocabulary"):
            client.tokenize(str(path), "x")
        assert client.tokenize("tiny", "x")


def test_the_command_prints_ids_and_text(daemon: RunningDaemon, llama_cpp: None) -> None:
    told = run_enclave("tokenize", "tiny", "Once upon", "--json", home=daemon.home)
    assert told.returncode == 0, told.stderr
    ids = json.loads(told.stdout)["tokens"]
    back = run_enclave("tokenize", "tiny", "--ids", *map(str, ids), home=daemon.home)
    assert back.stdout.strip() == "Once upon"
