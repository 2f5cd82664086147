"""Tokens over the wire, from vocabularies that no worker has loaded."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import enclave
from enclave.protocol import Cancel, Error, Request, Result, write_body
from enclave.protocol.bodies import TokenizeParams
from enclave.protocol.packing import BODY_LIMITS, MIB
from plugins.llama_cpp.tests.test_vocabulary import TOKENIZERS, golden_cases, tiny_bytes
from plugins.llama_cpp.tests.tiny_gguf import F32, STRING, tiny_llama
from tests.integration.wire import WireClient
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


def test_a_long_text_comes_back(daemon: RunningDaemon, llama_cpp: None) -> None:
    text = "once upon a time " * 62_000
    with daemon.client() as client:
        tokens = client.tokenize("tiny", text, special=False)
        assert client.detokenize("tiny", tokens) == f" {text}"


def test_a_long_text_holds_up_nobody_who_reads_headers(daemon: RunningDaemon, tmp_path: Path, llama_cpp: None) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny_llama().encode())
    with daemon.client() as client, WireClient(daemon.endpoint) as other:
        client.show("tiny")
        client.tokenize("tiny", "x")
        other.hello()
        body = write_body(TokenizeParams(text="once upon a time " * 300_000))
        other.send(Request(id=other.session.next_id(), method="tokenize", model="tiny", body=body))
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(other.next()))
        waiting.start()
        # A text of 5 MB takes fifty times as long as a header.
        assert client.show(str(path)).header is not None
        assert answers == []
        waiting.join()
        assert isinstance(answers[0], Result)


def test_a_word_of_any_length_is_tokenised_behind_the_walls(
    daemon: RunningDaemon, tmp_path: Path, llama_cpp: None
) -> None:
    path = tmp_path / "bytes.gguf"
    path.write_bytes(tiny_bytes("gpt-4o").encode())
    with daemon.client() as client:
        assert client.tokenize(str(path), "x" * 150_000, special=False) == [120] * 150_000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "magic"),
        (b"no model at all" * 100, "GGUF"),
        (tiny_llama(changes={"tokenizer.ggml.model": (STRING, "unheard of")}).encode(), "unheard of"),
        (tiny_llama(changes={"tokenizer.ggml.scores": (F32, [0.0])}).encode(), "scores"),
    ],
)
def test_a_file_without_a_vocabulary_is_an_error_and_the_next_is_read(
    daemon: RunningDaemon, tmp_path: Path, llama_cpp: None, content: bytes, told: str
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with daemon.client() as client:
        with pytest.raises(enclave.BadModelFileError) as error:
            client.tokenize(str(path), "x")
        assert told in str(error.value)
        assert client.tokenize("tiny", "x")


@pytest.fixture
def deadly(tmp_path: Path, llama_cpp: None) -> Path:
    """A vocabulary over which llama.cpp ends the process when a text has a letter that is no token."""
    model = tiny_llama()
    _, tokens = model.pairs["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    lettered = [f"no byte {token}" if token.startswith("<0x") else token for token in map(str, tokens)]
    model.pairs["tokenizer.ggml.tokens"] = (STRING, lettered)
    model.pairs["tokenizer.ggml.token_type"] = (5, [2, 3, 3] + [1] * (len(lettered) - 3))
    path = tmp_path / "deadly.gguf"
    path.write_bytes(model.encode())
    return path


def test_a_vocabulary_that_ends_its_reader_is_an_error_and_the_next_is_read(
    daemon: RunningDaemon, deadly: Path
) -> None:
    with daemon.client() as client:
        assert client.tokenize(str(deadly), "hello")
        with pytest.raises(enclave.BadModelFileError, match="ended the reader"):
            client.tokenize(str(deadly), "héllo")
        assert client.tokenize("tiny", "héllo")
        assert client.show(str(deadly)).header is not None


def test_nobody_is_blamed_for_a_request_that_was_cancelled(daemon: RunningDaemon, deadly: Path) -> None:
    with daemon.client() as client, WireClient(daemon.endpoint) as gone:
        client.tokenize("tiny", "x")
        gone.hello()
        body = write_body(TokenizeParams(text="hello " * 500_000 + "é"))
        gone.send(Request(id=gone.session.next_id(), method="tokenize", model=str(deadly), body=body))
        gone.send(Cancel(id=1))
        error = gone.next()
        assert isinstance(error, Error)
        assert error.code == "cancelled"
        assert client.tokenize("tiny", "x")


def test_a_deadline_ends_a_long_text(daemon: RunningDaemon, llama_cpp: None) -> None:
    with daemon.client() as client, WireClient(daemon.endpoint) as hasty:
        client.tokenize("tiny", "x")
        hasty.hello()
        body = write_body(TokenizeParams(text="once upon a time " * 500_000))
        hasty.send(Request(id=hasty.session.next_id(), method="tokenize", model="tiny", deadline=0.05, body=body))
        error = hasty.next()
        assert isinstance(error, Error)
        assert error.code == "deadline"
        assert client.tokenize("tiny", "x")


def test_an_answer_that_no_client_could_read_is_too_large(daemon: RunningDaemon) -> None:
    tokens_max = BODY_LIMITS.array_items
    with daemon.client() as client:
        with pytest.raises(enclave.TooLargeError, match="in parts"):
            client.tokenize("fake:a", "x" * (tokens_max + 1), special=False)
        with pytest.raises(enclave.TooLargeError):
            client.tokenize("fake:a", "x" * (16 * MIB))
        assert client.tokenize("fake:a", "x", special=False) == [120]


def test_the_command_prints_ids_and_text(daemon: RunningDaemon, llama_cpp: None) -> None:
    told = run_enclave("tokenize", "tiny", "Once upon", "--json", home=daemon.home)
    assert told.returncode == 0, told.stderr
    ids = json.loads(told.stdout)["tokens"]
    back = run_enclave("tokenize", "tiny", "--ids", *map(str, ids), home=daemon.home)
    assert back.stdout.strip() == "Once upon"
    told = run_enclave("tokenize", "tiny", "--ids", "--json", *map(str, ids), home=daemon.home)
    assert json.loads(told.stdout)["text"].strip() == "Once upon"
    refused = run_enclave("tokenize", "tiny", "--ids", "1", "1000000", home=daemon.home)
    assert refused.returncode != 0
    assert "tokens[1]" in refused.stderr
