"""Lines of JSON and the messages that they mean."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import AttachmentInfo, Chunk, RemoteProtocolError, Request, Result, failure
from enclave.protocol.packing import pack
from enclave_cli.json_lines import LineSplitter, read_line, to_line, to_message


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
