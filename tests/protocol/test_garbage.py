"""Garbage is accepted or raises RemoteProtocolError, never another exception; whole, cut, flipped and made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from enclave.protocol import (
    METHODS,
    Chunk,
    Limits,
    RemoteProtocolError,
    Request,
    Result,
    Role,
    Session,
    State,
    read_chunks,
    read_params,
    read_result,
)
from enclave.protocol.messages import parse, read_raw
from enclave.protocol.packing import BODY_LIMITS, HEADER_LIMITS, MIB, PackLimits, iterate, pack, unpack

if TYPE_CHECKING:
    from tests.protocol.conftest import SessionPair

TOKEN = bytes(range(16))
MESSAGES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "messages.json").read_text(encoding="utf-8")
)
HEADERS = [bytes.fromhex(vector["frames"][0]) for vector in MESSAGES]
FRAMES = [[bytes.fromhex(frame) for frame in vector["frames"]] for vector in MESSAGES]


def swallow(frames: list[bytes]) -> None:
    """The oracle."""
    refused: RemoteProtocolError | None = None
    try:
        message = parse(read_raw(frames), Limits())
        if isinstance(message, Request):
            read_params(message)
        elif isinstance(message, Result):
            read_result("generate", message)
        elif isinstance(message, Chunk):
            list(read_chunks("generate", message))
    except RemoteProtocolError as error:
        refused = error
    assert refused is None or len(refused.message) < 2000


@pytest.mark.parametrize("frames", FRAMES, ids=[vector["name"] for vector in MESSAGES])
def test_a_message_cut_at_any_byte_or_with_any_byte_changed_is_taken_or_refused(frames: list[bytes]) -> None:
    for index, frame in enumerate(frames):
        for place in range(len(frame)):
            for changed in (frame[:place], frame[place:], *(flipped(frame, place, mask) for mask in (1, 0x40, 0xFF))):
                swallow([*frames[:index], changed, *frames[index + 1 :]])
    for count in range(len(frames)):
        swallow(frames[:count])
    swallow([*frames, b"after"])


def flipped(frame: bytes, place: int, mask: int) -> bytes:
    return frame[:place] + bytes([frame[place] ^ mask]) + frame[place + 1 :]


@given(st.lists(st.binary(max_size=200), max_size=4))
@example([b"\xdd\xff\xff\xff\xff"])
@example([b"\xdf\xff\xff\xff\xff"])
@example([b"\xc6\xff\xff\xff\xff"])
@example([b"\x91" * 16_000])
@example([b"\x81\xa1a" * 5000])
def test_any_bytes_are_taken_or_refused(frames: list[bytes]) -> None:
    swallow(frames)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["id", "token", "method", "model", "chunks", "credit", "version", "client", "seq", "count", "stage", "code"]
HEADER = st.dictionaries(st.sampled_from(FIELDS), PLAIN | st.just(TOKEN) | st.integers(1, 5))
TYPES = st.sampled_from([vector["header"]["type"] for vector in MESSAGES])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TYPES, HEADER, st.lists(st.binary(max_size=30), max_size=2)), max_size=6))
def test_a_daemons_session_takes_or_refuses_any_sequence_and_can_always_answer(
    messages: list[tuple[str, dict[str, object], list[bytes]]],
) -> None:
    session = open_session()
    for kind, header, rest in messages:
        refused: RemoteProtocolError | None = None
        try:
            received = session.receive([pack({"token": TOKEN, **header, "type": kind}), *rest])
        except RemoteProtocolError as error:
            refused, received = error, []
        assert [message.TYPE for message in received] in ([], [kind])
        assert (refused is not None and refused.fatal) == (session.state is State.ERROR)
        if refused is not None:
            assert session.refuse(refused)
        if session.state is State.ERROR:
            return


def open_session() -> Session:
    from enclave.protocol import Hello, Welcome

    client, daemon = Session(Role.CLIENT), Session(Role.DAEMON)
    daemon.receive(client.send(Hello(version=1, client="x")))
    client.receive(daemon.send(Welcome(version=1, token=TOKEN, server="", pid=1)))
    return daemon


@pytest.mark.parametrize("name", METHODS)
@given(body=st.binary(max_size=100) | PLAIN.map(pack))
@settings(max_examples=20)
def test_any_body_is_taken_or_refused_by_every_method(name: str, body: bytes) -> None:
    for read in (
        lambda: read_params(Request(id=1, method=name, model="m", body=body)),
        lambda: read_result(name, Result(id=1, body=body)),
        lambda: list(read_chunks(name, Chunk(id=1, seq=0, body=body))),
    ):
        try:
            read()
        except RemoteProtocolError:
            continue


# --- limits ---


TIGHT = PackLimits(frame_bytes=100, text_bytes=4, binary_bytes=3, array_items=2, map_items=1, depth=2)


@pytest.mark.parametrize("value", ["abcd", b"abc", [1, 2], {"a": 1}, [[1]], {"a": [1]}])
def test_a_value_at_its_limit_is_taken(value: object) -> None:
    assert unpack(pack(value), TIGHT) == value


@pytest.mark.parametrize("value", ["abcde", "éé!", b"abcd", [1, 2, 3], {"a": 1, "b": 2}, [[[1]]], [{"a": [1]}]])
def test_a_value_past_its_limit_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(pack(value), TIGHT)


def test_a_frame_past_its_limit_is_refused_without_being_read() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(b"\xc1" * 101, TIGHT)
    assert (caught.value.code, caught.value.numbers) == ("too_large", {"bytes": 101, "bytes_max": 100})


def test_a_body_of_the_largest_size_is_taken() -> None:
    text = "x" * (BODY_LIMITS.frame_bytes - 5)
    assert unpack(pack(text), BODY_LIMITS) == text
    assert BODY_LIMITS.frame_bytes == 32 * MIB
    assert HEADER_LIMITS.frame_bytes < MIB


def test_a_map_with_keys_that_are_not_text_is_refused_at_any_depth() -> None:
    for data in (b"\x81\x01\x02", b"\x91\x81\x01\x02", b"\x81\xc4\x01a\x02", b"\x81\x90\x02"):
        with pytest.raises(RemoteProtocolError):
            list(iterate(data, BODY_LIMITS))


def test_concatenated_values_come_one_by_one_and_the_good_ones_before_the_bad() -> None:
    values = iterate(pack(1) + pack("two") + b"\xc1", BODY_LIMITS)
    assert next(values) == 1
    assert next(values) == "two"
    with pytest.raises(RemoteProtocolError):
        next(values)


def test_a_session_refuses_garbage_before_hello(fresh: SessionPair) -> None:
    assert fresh.refused([b"GET / HTTP/1.1\r\n"]).fatal
