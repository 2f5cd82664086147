"""Lines of JSON and the messages that they mean."""

from __future__ import annotations

import base64
import dataclasses
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import AttachmentInfo, Chunk, RemoteProtocolError, Request, Result, failure
from enclave.protocol.methods import METHODS
from enclave.protocol.packing import pack
from enclave_cli.completing import complete
from enclave_cli.json_lines import LineSplitter, read_line, to_line, to_message
from enclave_cli.output import plain


def test_a_line_beyond_the_bound_is_refused_once_and_the_next_is_read() -> None:
    splitter = LineSplitter(line_bytes_max=10)
    splitter.feed(b"0123456789\n01234567890")
    assert [splitter.take(), splitter.take()] == [b"0123456789", None]
    for _ in range(5):
        splitter.feed(b"x" * 8)
    assert not splitter
    splitter.feed(b"\nnext\n")
    assert splitter.take() == b"next"
    assert not splitter


GENERATE = {"type": "request", "id": 1, "method": "generate", "body": {"prompt": "x"}}


def request(**fields: object) -> Request:
    message = to_message(read_line(json.dumps({**GENERATE, **fields}).encode()))
    assert isinstance(message, Request)
    return message


def test_a_request_without_body_has_an_empty_one() -> None:
    assert request(body=None).body == b""
    assert request(body={}).body == pack({})


def test_attachments_are_base64_and_their_sizes_may_be_left_out() -> None:
    data = bytes(range(256))
    infos = [{"kind": "image/png"}, {"kind": "b", "size_bytes": 1}, {"kind": "c", "size_bytes": None}]
    read = request(attachments=infos, frames=[base64.b64encode(data).decode(), "AA==", ""])
    assert read.frames == (data, b"\0", b"")
    assert read.attachments[0] == AttachmentInfo(kind="image/png", size_bytes=256)
    assert [info.size_bytes for info in read.attachments] == [256, 1, 0]


WRONG_ATTACHMENTS: list[dict[str, object]] = [
    {"attachments": [{"kind": "a"}]},
    {"attachments": [{"kind": "a"}], "frames": ["not base64!"]},
    {"attachments": [{"kind": "a"}], "frames": ["é"]},
    {"attachments": [{"kind": "a"}], "frames": [7]},
    {"attachments": [{"kind": "a"}], "frames": "AA=="},
    {"attachments": [{}], "frames": ["AA=="]},
    {"attachments": [7], "frames": ["AA=="]},
    {"attachments": 7, "frames": ["AA=="]},
    {"frames": "AA=="},
]


@pytest.mark.parametrize("wrong", WRONG_ATTACHMENTS)
def test_attachments_that_do_not_fit_their_frames_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        request(**wrong)
    assert refused.value.field is not None


def test_a_chunks_body_is_the_list_of_its_values() -> None:
    values: list[object] = [{"text": "a", "tokens": [7]}, {"text": "b"}]
    line = to_line(Chunk(id=1, seq=3, count=2, body=b"".join(map(pack, values))))
    assert json.loads(line) == {"type": "chunk", "id": 1, "seq": 3, "count": 2, "body": values}


def test_a_results_body_is_one_value_and_an_empty_one_an_object() -> None:
    assert json.loads(to_line(Result(id=1, body=pack([1]))))["body"] == [1]
    assert json.loads(to_line(Result(id=1)))["body"] == {}


def test_bytes_in_a_body_are_base64() -> None:
    assert json.loads(to_line(Result(id=1, body=pack({"raw": b"\0"}))))["body"] == {"raw": "AA=="}


def test_an_errors_body_is_text_and_left_out_when_empty() -> None:
    assert json.loads(to_line(failure(1, "worker_died", detail="é")))["body"] == "é"
    assert "body" not in json.loads(to_line(failure(1, "worker_died")))


def test_attachments_of_an_answer_come_as_base64() -> None:
    data = bytes(range(256))
    info = (AttachmentInfo(kind="float32[64]", size_bytes=256),)
    line = json.loads(to_line(Result(id=1, attachments=info, frames=(data,), body=pack({"count": 1}))))
    assert line["attachments"] == [{"kind": "float32[64]", "size_bytes": 256}]
    assert [base64.b64decode(frame) for frame in line["frames"]] == [data]


def test_a_line_out_is_one_line_to_every_reader_of_lines() -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x85\u2028\u2029é😀"
    line = to_line(Result(id=1, body=pack({"text": text})))
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) == 1
    assert "é😀" in line.decode()
    assert json.loads(line)["body"]["text"] == text


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (
            {"body": {"prompt": "hi", "max_tokens": 2}},
            "max_tokens",
            "max_tokens: belongs beside `method`, not into `body`",
        ),
        ({"body": None, "prompt": "hi"}, "prompt", "prompt: belongs into `body`, not beside `method`"),
        ({"prompt": "hi"}, "prompt", None),
        (
            {"method": "models.show", "body": None, "model": "tiny"},
            "model",
            "model: belongs into `body`, not beside `method`",
        ),
        ({"method": "models.show", "body": {"model": "tiny", "frames": []}}, "frames", None),
        ({"method": "instances.load", "body": {"model": "m"}, "context": 512}, "context", None),
    ],
)
def test_a_field_in_the_wrong_place_is_refused_and_told_where_it_belongs(
    fields: dict[str, object], field: str, message: str | None
) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        request(**fields)
    assert refused.value.field == field
    assert message is None or refused.value.message == message


@pytest.mark.parametrize(
    "fields",
    [
        {"newer": 1, "body": {"prompt": "hi", "newer": 1, "max_tokens": None}},
        {"method": "models.show", "model": "tiny", "body": {"model": "tiny"}},
        {"method": "models.show", "body": {"model": "tiny"}, "priority": "normal", "prompt": "hi"},
        {"method": "a.newer.one", "prompt": "hi", "body": {"max_tokens": 2}},
    ],
)
def test_a_field_that_is_not_known_or_said_in_both_places_is_passed_on(fields: dict[str, object]) -> None:
    assert request(**fields).body == pack(fields["body"])


def result_body(method: str, body: object) -> object:
    return json.loads(to_line(Result(id=1, body=pack(body)), method))["body"]


def test_a_result_has_every_declared_field_and_whatever_else_came() -> None:
    assert json.loads(to_line(Result(id=1), "instances.list"))["body"] == {"instances": []}
    body = {"finish_reason": "stop", "usage": {"prompt_tokens": 3, "newer": 1}, "other": True}
    timings = ("tokenize_seconds", "prompt_seconds", "first_token_seconds", "decoding_seconds", "total_seconds")
    usage = {
        "prompt_tokens": 3,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "uncached_reason": None,
        "left_out_tokens": 0,
        "shifted_tokens": 0,
        "newer": 1,
    }
    assert result_body("generate", body) == {
        "finish_reason": "stop",
        "finish_reasons": [],
        "template": None,
        "seed": None,
        "context_full": False,
        "usage": usage,
        "timings": dict.fromkeys(timings),
        "other": True,
    }


def test_what_lies_in_arrays_of_a_result_has_its_fields_too() -> None:
    told: Any = result_body("instances.list", {"instances": [{"id": "i1", "askers": [{"session": "c1"}]}, 7]})
    (instance, odd) = told["instances"]
    assert (instance["leases"], instance["memory"]["kv"], instance["walls"], odd) == (0, None, None, 7)
    assert instance["askers"] == [{"session": "c1", "pid": None, "program": None, "running": 0, "queued": 0}]


def test_a_chunk_has_every_declared_field() -> None:
    line = to_line(Chunk(id=1, seq=0, body=pack({"text": "a"})), "generate")
    assert json.loads(line)["body"] == [
        {"text": "a", "tokens": [], "choice": 0, "reasoning": None, "logprobs": [], "tool_calls": []}
    ]


@pytest.mark.parametrize("method", [*METHODS, "a.newer.one"])
def test_a_body_that_is_not_as_declared_passes_as_it_is(method: str) -> None:
    for body in ([1], 7, None, "text"):
        assert result_body(method, body) == body
    odd: Any = result_body(method, {"usage": 7, "instances": {"a": 1}, "newer": 1})
    assert (odd["usage"], odd["newer"]) == (7, 1)


@pytest.mark.parametrize("name", METHODS)
def test_the_fields_that_are_filled_in_are_those_that_a_typed_client_reads(name: str) -> None:
    row = METHODS[name]
    for kind in (row.result, row.chunk):
        if kind is not None and all(has_default(field) for field in dataclasses.fields(kind)):
            assert complete(kind, {}) == plain(kind())


def has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not field.default_factory


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5), limit=st.integers(1, 50))
def test_lines_are_the_same_however_they_are_cut(data: bytes, cuts: list[int], limit: int) -> None:
    def lines(pieces: list[bytes]) -> list[bytes | None]:
        splitter = LineSplitter(limit)
        for piece in pieces:
            splitter.feed(piece)
        splitter.end()
        found: list[bytes | None] = []
        while splitter:
            found.append(splitter.take())
        return found

    marks = [0, *sorted(cuts), len(data)]
    cut = [data[start:end] for start, end in pairwise(marks)]
    whole = data if max(marks) <= len(data) else b"".join(cut)
    assert lines(cut) == lines([whole])
    assert lines([whole]) == [line if len(line) <= limit else None for line in whole.split(b"\n") if line]
