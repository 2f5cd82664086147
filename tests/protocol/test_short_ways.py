"""What is done more cheaply for the frames that nearly all are gives what the general way gives."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from enclave.protocol import Chunk, Limits, LocalProtocolError, RemoteProtocolError, Request, Role, Session
from enclave.protocol.messages import COUNT_MAX, ID_MAX
from enclave.protocol.packing import BODY_LIMITS, HEADER_LIMITS, PackLimits, pack, unpack
from tests.protocol.conftest import SessionPair

TIGHT = PackLimits(frame_bytes=100, text_bytes=4, binary_bytes=4, array_items=4, map_items=20, depth=2)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def outcome(frame: bytes, limits: PackLimits) -> object:
    try:
        return repr(unpack(frame, limits))
    except RemoteProtocolError as error:
        return error.message, error.code, error.numbers


def without_short_way(limits: PackLimits) -> PackLimits:
    general = dataclasses.replace(limits)
    object.__setattr__(general, "flat_bytes", 0)
    return general


@given(
    st.binary(max_size=300)
    | VALUES.map(pack)
    | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), VALUES, max_size=5).map(pack),
    st.integers(0, 300),
    st.binary(max_size=3),
)
@example(pack({"a": 1}) + pack({"a": 1}), 300, b"")
@example(b"\x82\xa1a\x01\xa1a\x02", 300, b"")
@example(b"\x81\xa1a\xd6\xff\x00\x00\x00\x01", 300, b"")
@example(b"\x81\xa1a\xd4\x01\x00", 300, b"")
@example(pack({"a": [[1]]}), 300, b"")
@example(b"\x81\xa1a\x91\x80", 300, b"")
def test_a_frame_is_read_as_without_the_short_way(frame: bytes, cut_at: int, behind: bytes) -> None:
    frame = frame[:cut_at] + behind
    for limits in (HEADER_LIMITS, BODY_LIMITS, TIGHT):
        assert outcome(frame, limits) == outcome(frame, without_short_way(limits))


IDS = st.sampled_from([0, 1, 2, 3, -1, ID_MAX, ID_MAX + 1, True, 1.0, "1", None])
NUMBERS = st.sampled_from([0, 1, 5, 10, -1, COUNT_MAX, COUNT_MAX + 1, ID_MAX, True, 5.0, "5", None])


def with_two_requests(seq: int, credit: int) -> Session:
    """A client with two open requests: 1 as given, 2 without credit."""
    pair = SessionPair(Limits(body_bytes=10)).opened()
    pair.up(Request(id=1, method="generate", credit=credit), Request(id=2, method="generate", credit=0))
    if seq:
        pair.down(Chunk(id=1, seq=0, count=seq))
    return pair.client


@given(
    st.fixed_dictionaries(
        {"type": st.just("chunk")},
        optional={"id": IDS, "seq": NUMBERS, "count": NUMBERS, "attachments": st.sampled_from([None, [], [{}], 1])},
    ),
    st.lists(st.sampled_from([b"", b"x" * 10, b"x" * 11]), max_size=2),
    st.sampled_from([0, 5]),
    st.sampled_from([1, 2]),
)
def test_a_chunk_is_received_as_without_the_short_way(
    header: dict[str, Any], rest: list[bytes], seq: int, credit: int
) -> None:
    short = with_two_requests(seq, credit)
    general = copy.deepcopy(short)
    vars(general)["_plain_chunk"] = lambda raw: None  # pyright: ignore[reportUnknownLambdaType]
    results: list[object] = []
    for session in (short, general):
        try:
            received: object = session.receive([pack(header), *rest])
        except RemoteProtocolError as error:
            received = (error.message, error.code, error.field, error.request_id)
        results.append((received, session.state, session.open_ids, [(session.credit(i), i) for i in session.open_ids]))
    assert results[0] == results[1]


@given(st.integers(0, 3), st.integers(0, COUNT_MAX + 1), st.binary(max_size=11), st.sampled_from([0, 1]))
def test_a_chunk_is_sent_as_without_the_short_way(request_id: int, count: int, body: bytes, credit: int) -> None:
    pair = SessionPair(Limits(body_bytes=10)).opened()
    pair.up(Request(id=1, method="generate", credit=credit), Request(id=2, method="generate", credit=0))
    short, general = pair.daemon, copy.deepcopy(pair.daemon)
    assert short.role is Role.DAEMON
    results: list[object] = []
    for session in (short, general):
        try:
            if session is short:
                sent = session.send_chunk(request_id, body, count)
            else:
                sent = session.send(Chunk(id=request_id, seq=0, count=count, body=body))
        except LocalProtocolError:
            sent = None
        results.append((sent, [(session.credit(i), session.next_seq(i)) for i in session.open_ids]))
    assert results[0] == results[1]
