"""The machine of `enclave bridge` against a daemon's side of the session: no pipe, no socket, no process."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.exceptions import error_for
from enclave.protocol import (
    Bye,
    Cancel,
    Chunk,
    Credit,
    Hello,
    LocalProtocolError,
    Message,
    Ping,
    Pong,
    Priority,
    Progress,
    Request,
    RequestId,
    Result,
    Stage,
    State,
    failure,
)
from enclave.protocol.messages import ID_MAX
from enclave.protocol.packing import BODY_LIMITS, pack, unpack
from enclave_cli.bridging import GRANT_AT, OUTPUT_BYTES_MAX, REFUSALS_BYTES_MAX, Bridge

from .bridge_pair import GENERATE, OWN, WELCOME, Pair, chunk_body


@pytest.fixture
def pair() -> Pair:
    return Pair()


# --- hello and welcome ---


def test_a_client_that_says_no_hello_is_greeted_under_the_own_name(pair: Pair) -> None:
    assert pair.say(GENERATE) == [{"type": "welcome", "version": 1, "server": "0.1.0", "pid": 4711}]
    assert pair.heard[0] == OWN
    assert isinstance(pair.last(), Request)


def test_a_hello_needs_no_version_and_leaves_out_what_is_known(pair: Pair) -> None:
    (welcome,) = pair.say({"type": "hello", "client": "my-editor", "priority": "interactive"})
    assert welcome["type"] == "welcome"
    assert "token" not in welcome
    assert pair.heard == [
        Hello(version=1, version_min=1, client="my-editor", program="test/1", priority=Priority.INTERACTIVE)
    ]


def test_a_hello_is_not_said_before_there_is_a_line(pair: Pair) -> None:
    assert not pair.bridge.wants_session
    pair.bridge.feed(b'{"type": "hello"')
    assert not pair.bridge.wants_session
    pair.bridge.feed(b"}\n")
    assert pair.bridge.wants_session


@pytest.mark.parametrize(
    ("said", "agreed"), [({"version": 1}, 1), ({"version": 5, "version_min": 1}, 1), ({"version": 5}, None)]
)
def test_of_the_versions_the_newest_that_client_and_bridge_speak_is_said(
    pair: Pair, said: dict[str, int], agreed: int | None
) -> None:
    (line,) = pair.say({"type": "hello", **said})
    if agreed is None:
        assert (line["type"], line["code"]) == ("error", "version_mismatch")
        assert pair.daemon is None
    else:
        assert [m.version for m in pair.heard if isinstance(m, Hello)] == [agreed]


def test_a_second_hello_is_refused_and_the_session_goes_on(pair: Pair) -> None:
    pair.say({"type": "hello"})
    (refused,) = pair.say({"type": "hello"})
    assert (refused["type"], refused["code"]) == ("error", "bad_message")
    assert pair.say(GENERATE) == []
    assert isinstance(pair.last(), Request)


def test_lines_behind_the_first_wait_for_the_welcome_and_keep_their_order() -> None:
    pair = Pair(welcomes=False)
    pair.say(GENERATE, {**GENERATE, "id": 2}, {"type": "cancel", "id": 1})
    assert not pair.bridge.wants_input
    assert [type(m) for m in pair.heard] == [Hello]
    pair.tell(WELCOME)
    assert [(type(m), getattr(m, "id", None)) for m in pair.heard[1:]] == [(Request, 1), (Request, 2), (Cancel, 1)]
    assert pair.bridge.wants_input


def test_a_name_that_cannot_be_said_is_refused_at_once() -> None:
    with pytest.raises(LocalProtocolError, match="client"):
        Bridge(Hello(version=1, client="x" * 300))


def test_a_hello_that_cannot_be_sent_is_refused_before_anything_connects(pair: Pair) -> None:
    (refused,) = pair.say({"type": "hello", "client": "\ud800"})
    assert refused["code"] == "bad_message"
    assert pair.daemon is None


# --- requests ---


def test_a_request_is_the_protocols_with_its_body_in_messagepack(pair: Pair) -> None:
    pair.say({**GENERATE, "priority": "background", "deadline": 3, "token": "whatever", "later": True, "backend": None})
    request = pair.last()
    assert isinstance(request, Request)
    assert request.token == WELCOME.token
    assert (request.priority, request.deadline, request.backend, request.credit) == (Priority.BACKGROUND, 3.0, None, 64)
    assert unpack(request.body, BODY_LIMITS) == {"prompt": "x"}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"method": None}, "method"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"credit": -1}, "credit"),
        ({"body": [1]}, "body"),
        ({"body": {"seed": 2**64}}, "body"),
        ({"body": {"seed": -(2**63) - 1}}, "body"),
        ({"body": {"prompt": "\udc80"}}, "body"),
        ({"method": "\ud800"}, None),
        ({"frames": ["AA=="]}, "attachments"),
        ({"frames": ["AA=="], "attachments": [{"kind": "a", "size_bytes": 2}]}, "attachments"),
    ],
)
def test_a_wrong_request_is_answered_under_its_id_and_does_not_reach_the_daemon(
    pair: Pair, line: dict[str, object], field: str | None
) -> None:
    pair.say({"type": "hello"})
    (refused,) = pair.say({**GENERATE, **line})
    assert (refused["type"], refused["id"], refused["code"]) == ("error", 1, "bad_request")
    assert refused.get("field") == field
    assert [type(m) for m in pair.heard] == [Hello]
    assert pair.say({**GENERATE, "id": 2}) == []
    assert isinstance(pair.last(), Request)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'"body": {"temperature": NaN}', "NaN"),
        (b'"body": {"temperature": -Infinity}', "Infinity"),
        (b'"body": {"temperature": 1e999}', "too large"),
        (b'"body": {"prompt": "a", "prompt": "b"}', "twice"),
        (b'"body": {"prompt": "\xff"}', "UTF-8"),
    ],
)
def test_json_that_is_none_is_refused_under_the_id_that_can_be_read(pair: Pair, raw: bytes, words: str) -> None:
    pair.say({"type": "hello"})
    (refused,) = pair.say(raw=b'{"type": "request", "id": 5, "method": "generate", %s}\n' % raw)
    assert (refused["id"], refused["code"]) == (5, "bad_request")
    assert words in refused["message"]
    assert [type(m) for m in pair.heard] == [Hello]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        b"[]",
        b"7",
        b"{",
        b'{"type": "request", "id": 5} more',
        b"\xff\xfe{}",
        b'\xef\xbb\xbf{"type": "hello"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"type": "ping", "a": ' + b"9" * 5000 + b"}",
        b'{"type": "request", "id": 5, "id": 6, "method": "m"}',
        b'{"type": "request", "method": "m"}',
        b'{"type": "request", "id": 0, "method": "m"}',
        b'{"type": "request", "id": true, "method": "m"}',
        b'{"type": "request", "id": 1.0, "method": "m"}',
        b'{"type": "request", "id": 9007199254740992, "method": "m"}',
        b"{}",
        b'{"type": null}',
        b'{"type": 7}',
        b'{"type": ["request"]}',
        b'{"type": "chunk", "id": 1, "seq": 0}',
        b'{"type": "welcome"}',
        b'{"type": "pong"}',
        b'{"type": "cancel"}',
        b'{"type": "cancel", "id": 1}',
        b'{"type": "credit", "id": 1, "chunks": 1}',
        b'{"type": "ping", "data": "!"}',
        b'{"type": "ping", "data": 7}',
        b'{"type": "ping", "data": "%s"}' % base64.b64encode(bytes(33)),
        b'{"type": "hello", "client": ""}',
        b'{"type": "hello", "priority": "urgent"}',
    ],
    ids=lambda raw: raw[:40].decode("latin-1"),
)
def test_a_line_that_means_nothing_is_answered_without_id_and_reaches_nobody(pair: Pair, raw: bytes) -> None:
    (refused,) = pair.say(raw=raw + b"\n")
    assert (refused["type"], refused["code"]) == ("error", "bad_message")
    assert "id" not in refused
    assert refused["message"]
    assert pair.daemon is None
    assert not pair.bridge.wants_session


def test_blank_lines_mean_nothing(pair: Pair) -> None:
    assert pair.say(raw=b"\n \r\n\t\n") == []
    assert not pair.bridge.wants_session


def test_a_request_with_an_id_that_is_not_new_is_answered_without_id(pair: Pair) -> None:
    pair.say({**GENERATE, "id": 7})
    for old in (7, 6):
        (refused,) = pair.say({**GENERATE, "id": old})
        assert "id" not in refused
        assert refused["field"] == "id"
    assert pair.daemon is not None
    assert pair.daemon.open_ids == (7,)


def test_a_too_long_line_is_told_with_its_bound(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.bridge._lines, "line_bytes_max", 1000)  # pyright: ignore[reportPrivateUsage]
    (refused,) = pair.say({"type": "ping", "x": "x" * 1000})
    assert (refused["code"], refused["numbers"]) == ("too_large", {"bytes_max": 1000})


def test_what_is_beyond_the_daemons_limits_is_refused_under_its_id(pair: Pair) -> None:
    for request_id in range(1, 257):
        pair.say({**GENERATE, "id": request_id})
    (refused,) = pair.say({**GENERATE, "id": 257})
    assert (refused["id"], refused["code"], refused["retryable"]) == (257, "busy", True)
    assert refused["retry_after"] > 0


def test_a_cancel_that_crosses_the_end_is_ignored_and_one_of_nothing_is_not(pair: Pair) -> None:
    pair.say(GENERATE)
    pair.tell(Result(id=RequestId(1)))
    assert pair.say({"type": "cancel", "id": 1}, {"type": "credit", "id": 1, "chunks": 3}) == []
    assert not isinstance(pair.last(), (Cancel, Credit))
    (refused,) = pair.say({"type": "cancel", "id": 2})
    assert (refused["code"], refused["field"]) == ("bad_message", "id")


def test_a_cancel_reaches_the_daemon(pair: Pair) -> None:
    pair.say(GENERATE, {"type": "cancel", "id": 1})
    assert pair.last() == Cancel(id=RequestId(1), token=WELCOME.token)
    (ended,) = pair.tell(failure(1, "cancelled"))
    assert (ended["type"], ended["id"], ended["code"]) == ("error", 1, "cancelled")


# --- answers ---


def test_progress_chunks_and_result_are_lines_in_their_order(pair: Pair) -> None:
    pair.say(GENERATE)
    (progress,) = pair.tell(Progress(id=RequestId(1), stage=Stage.LOADING, fraction=0.5))
    assert progress == {"type": "progress", "id": 1, "stage": "loading", "fraction": 0.5}
    (first,), (second,) = pair.chunk(1), pair.chunk(1)
    assert (first["seq"], second["seq"]) == (0, 1)
    (result,) = pair.tell(Result(id=RequestId(1), model="m", body=pack({"finish_reason": "stop"})))
    assert result.pop("body")["finish_reason"] == "stop"
    assert result == {"type": "result", "id": 1, "model": "m"}


@pytest.mark.parametrize("body", [b"\xc1", b"", pack(1) + pack(2), pack(float("nan")), pack({"a": float("inf")})])
def test_an_answer_that_makes_no_sense_ends_its_request_alone(pair: Pair, body: bytes) -> None:
    pair.say(GENERATE, {**GENERATE, "id": 2})
    (error,) = pair.tell(Chunk(id=RequestId(1), seq=0, body=body))
    assert (error["type"], error["id"], error["code"]) == ("error", 1, "bad_message")
    assert "the daemon's answer makes no sense" in error["message"]
    assert pair.last() == Cancel(id=RequestId(1), token=WELCOME.token)
    assert pair.tell(Chunk(id=RequestId(1), seq=1, body=chunk_body())) == []
    assert pair.tell(failure(1, "cancelled")) == []
    assert pair.chunk(2)[0]["id"] == 2


def test_a_senseless_result_is_an_error(pair: Pair) -> None:
    pair.say(GENERATE)
    (error,) = pair.tell(Result(id=RequestId(1), body=b"\xc1"))
    assert (error["type"], error["id"]) == ("error", 1)
    assert pair.daemon is not None
    assert pair.daemon.open_ids == ()


# --- pings ---


def test_a_clients_ping_brings_its_pong_behind_what_was_sent_before(pair: Pair) -> None:
    data = base64.b64encode(b"\0hallo").decode()
    pair.say({"type": "hello"})
    assert pair.say({"type": "ping", "data": data}) == [{"type": "pong", "data": data}]


def test_a_pong_that_nobody_asked_for_is_not_shown(pair: Pair) -> None:
    pair.say({"type": "hello"})
    assert pair.tell(Pong()) == []


def test_the_daemons_ping_is_answered_at_once_when_everything_is_written_and_never_shown(pair: Pair) -> None:
    pair.say({"type": "hello"})
    assert pair.tell(Ping(data=b"12345678")) == []
    assert pair.last() == Pong(token=WELCOME.token, data=b"12345678")


def test_the_daemons_ping_is_answered_only_when_what_came_before_it_is_written(pair: Pair) -> None:
    pair.say(GENERATE)
    assert pair.daemon is not None
    for message in (
        Chunk(id=RequestId(1), seq=0, body=chunk_body()),
        Ping(data=b"first"),
        Chunk(id=RequestId(1), seq=1, body=chunk_body()),
        Ping(data=b"second"),
    ):
        pair.bridge.receive(pair.daemon.send(message))
    length = pair.bridge.waiting_bytes // 2
    pair.write(length - 1)
    assert not pair.bridge.outbox
    pair.write(1)
    pair.move(write=False)
    assert pair.last() == Pong(token=WELCOME.token, data=b"first")
    pair.write(length)
    pair.move(write=False)
    assert pair.last() == Pong(token=WELCOME.token, data=b"second")


# --- credit ---


def credit(pair: Pair) -> list[int]:
    return [message.chunks for message in pair.heard if isinstance(message, Credit)]


def test_credit_is_granted_for_chunks_that_were_written(pair: Pair) -> None:
    pair.say(GENERATE)
    for _ in range(GRANT_AT - 1):
        pair.chunk(1)
    assert credit(pair) == []
    for _ in range(GRANT_AT + 1):
        pair.chunk(1)
    assert credit(pair) == [GRANT_AT, GRANT_AT]


def test_no_credit_is_granted_for_what_is_not_written_yet(pair: Pair) -> None:
    pair.say(GENERATE)
    assert pair.daemon is not None
    for seq in range(64):
        pair.bridge.receive(pair.daemon.send(Chunk(id=RequestId(1), seq=seq, body=chunk_body())))
    pair.move(write=False)
    assert credit(pair) == []
    pair.move()
    assert credit(pair) == [GRANT_AT, GRANT_AT]


def test_a_client_that_names_its_credit_grants_by_itself(pair: Pair) -> None:
    pair.say({**GENERATE, "credit": 40})
    for _ in range(40):
        pair.chunk(1)
    assert credit(pair) == []
    pair.say({"type": "credit", "id": 1, "chunks": 5})
    assert credit(pair) == [5]


def test_after_the_end_of_input_the_bridge_grants_for_everybody(pair: Pair) -> None:
    pair.say({**GENERATE, "credit": 0})
    pair.bridge.end_input()
    pair.move()
    assert credit(pair) == [64]
    assert pair.chunk(1)[0]["seq"] == 0


def test_credit_never_goes_beyond_what_the_protocol_allows(pair: Pair) -> None:
    pair.say(GENERATE, {"type": "credit", "id": 1, "chunks": 65_536 - 64})
    for _ in range(GRANT_AT):
        pair.chunk(1)
    assert pair.daemon is not None
    assert pair.daemon.credit(1) == 65_536


def test_no_credit_is_granted_for_a_request_that_has_ended(pair: Pair) -> None:
    pair.say(GENERATE)
    assert pair.daemon is not None
    for seq in range(40):
        pair.bridge.receive(pair.daemon.send(Chunk(id=RequestId(1), seq=seq, body=chunk_body())))
    pair.bridge.receive(pair.daemon.send(Result(id=RequestId(1))))
    pair.move()
    assert credit(pair) == []


# --- bounds ---


def test_nothing_more_is_taken_from_the_daemon_while_much_waits_and_a_cancel_still_is(pair: Pair) -> None:
    pair.say(GENERATE)
    assert pair.daemon is not None
    body = pack({"text": "x" * 300_000})
    seq = 0
    while pair.bridge.wants_frames:
        pair.bridge.receive(pair.daemon.send(Chunk(id=RequestId(1), seq=seq, body=body)))
        seq += 1
    assert OUTPUT_BYTES_MAX < pair.bridge.waiting_bytes < OUTPUT_BYTES_MAX + 400_000
    assert pair.bridge.wants_input
    pair.bridge.feed(b'{"type": "cancel", "id": 1}\n')
    pair.move(write=False)
    assert isinstance(pair.last(), Cancel)
    pair.move()
    assert pair.bridge.wants_frames
    assert len(pair.lines) == 1 + seq


def test_a_client_that_reads_no_errors_is_not_read_for_ever(pair: Pair) -> None:
    while pair.bridge.wants_input:
        pair.bridge.feed(b"x\n" * 1000)
    assert REFUSALS_BYTES_MAX < pair.bridge.waiting_bytes < REFUSALS_BYTES_MAX + 1000 * 1000
    pair.move()
    assert pair.bridge.wants_input


def test_a_welcome_is_read_however_much_waits() -> None:
    pair = Pair(welcomes=False)
    pair.bridge.feed(b"x\n" * 20_000 + b'{"type": "hello"}\n')
    pair.move(write=False)
    assert pair.bridge.waiting_bytes > OUTPUT_BYTES_MAX
    assert pair.bridge.wants_frames


# --- endings ---


def test_a_lost_connection_ends_each_open_request_once_and_the_next_line_begins_anew(pair: Pair) -> None:
    pair.say({"type": "hello", "client": "mine"}, GENERATE, {**GENERATE, "id": 2})
    pair.bridge.lost()
    lost = pair.move()
    assert [(line["type"], line["id"], line["code"]) for line in lost] == [
        ("error", 1, "connection_lost"),
        ("error", 2, "connection_lost"),
    ]
    assert not pair.bridge.wants_session
    assert pair.say({"type": "cancel", "id": 2}) == []
    (welcome,) = pair.say({**GENERATE, "id": 3})
    assert welcome["type"] == "welcome"
    hello, request = pair.heard
    assert isinstance(hello, Hello)
    assert hello.client == "mine"
    assert isinstance(request, Request)
    assert request.id == 3


def test_a_new_session_may_have_ids_of_its_own(pair: Pair) -> None:
    pair.say({**GENERATE, "id": 100})
    pair.bridge.lost()
    pair.move()
    pair.say({**GENERATE, "id": 1})
    assert pair.chunk(1)[0]["id"] == 1


def test_what_waits_of_a_lost_session_is_written_and_answered_to_nobody(pair: Pair) -> None:
    pair.say(GENERATE)
    assert pair.daemon is not None
    for seq in range(40):
        pair.bridge.receive(pair.daemon.send(Chunk(id=RequestId(1), seq=seq, body=chunk_body())))
    pair.bridge.receive(pair.daemon.send(Ping(data=b"old")))
    pair.bridge.lost()
    pair.bridge.feed(json.dumps(GENERATE).encode() + b"\n")
    pair.move(write=False)
    lines = pair.move()
    assert [line["type"] for line in lines] == ["chunk"] * 40 + ["error", "welcome"]
    assert [type(message) for message in pair.heard] == [Hello, Request]


def test_a_connection_that_goes_before_the_welcome_may_be_made_again() -> None:
    pair = Pair(welcomes=False)
    pair.say(GENERATE)
    assert pair.bridge.is_greeting
    pair.bridge.unsay()
    assert pair.bridge.wants_session
    pair.welcomes = True
    assert [line["type"] for line in pair.move()] == ["welcome"]
    assert isinstance(pair.last(), Request)


def test_a_daemon_that_cannot_be_reached_is_an_error_of_the_line_that_wanted_it(pair: Pair) -> None:
    pair.bridge.feed(json.dumps(GENERATE).encode() + b"\n")
    error = error_for("daemon_unavailable", "nobody there", hint="look", detail="the log's end")
    pair.bridge.unreachable(error)
    (line,) = pair.move()
    assert line == {
        "type": "error",
        "id": 1,
        "code": "daemon_unavailable",
        "message": "nobody there",
        "hint": "look",
        "retryable": True,
        "body": "the log's end",
    }
    assert pair.say({**GENERATE, "id": 2})[0]["type"] == "welcome"


def test_a_hello_that_reaches_nobody_is_an_error_without_id(pair: Pair) -> None:
    pair.bridge.feed(b'{"type": "hello"}\n')
    pair.bridge.unreachable(error_for("daemon_unavailable"))
    (line,) = pair.move()
    assert "id" not in line


def test_a_session_that_the_daemon_ends_ends_every_request_in_it() -> None:
    pair = Pair()
    pair.say({"type": "hello", "client": "mine"}, GENERATE)
    lines = pair.tell(failure(None, "bad_message", "that makes no sense"))
    assert [(line["type"], line.get("id"), line["code"]) for line in lines] == [
        ("error", None, "bad_message"),
        ("error", 1, "bad_message"),
    ]
    assert not pair.bridge.has_session
    assert pair.say({**GENERATE, "id": 2})[0]["type"] == "welcome"
    assert [m.client for m in pair.heard if isinstance(m, Hello)] == ["mine"]


def test_a_session_that_is_refused_ends_the_request_that_wanted_it() -> None:
    pair = Pair(welcomes=False)
    pair.say(GENERATE)
    lines = pair.tell(failure(None, "busy", "full", retry_after=2.0))
    assert [(line.get("id"), line["code"], line["retry_after"]) for line in lines] == [
        (None, "busy", 2.0),
        (1, "busy", 2.0),
    ]


@pytest.mark.parametrize("frames", [[b"\xc1"], [], [pack({"type": "chunk", "id": 9, "seq": 0}), b""]])
def test_a_daemon_that_breaks_the_rules_ends_the_session(pair: Pair, frames: list[bytes]) -> None:
    pair.say(GENERATE)
    pair.bridge.receive(frames)
    first, second = pair.move()
    assert "id" not in first
    assert (second["id"], second["code"]) == (1, "bad_message")
    assert not pair.bridge.has_session


def test_at_the_end_of_input_what_is_open_ends_and_then_all_does(pair: Pair) -> None:
    pair.say(GENERATE)
    pair.bridge.end_input()
    assert not pair.bridge.wants_input
    assert not pair.bridge.is_done
    assert pair.chunk(1)[0]["type"] == "chunk"
    assert pair.tell(Result(id=RequestId(1)))[0]["type"] == "result"
    assert pair.bridge.is_done
    pair.bridge.leave()
    pair.move()
    assert pair.last() == Bye(token=WELCOME.token)


def test_a_last_line_needs_no_newline(pair: Pair) -> None:
    pair.bridge.feed(b'{"type": "ping"}')
    assert pair.move() == []
    pair.bridge.end_input()
    assert not pair.bridge.is_done
    assert [line["type"] for line in pair.move()] == ["welcome", "pong"]
    assert pair.bridge.is_done


def test_nothing_said_is_nothing_done(pair: Pair) -> None:
    pair.bridge.end_input()
    assert pair.bridge.is_done
    pair.bridge.leave()
    assert not pair.bridge.outbox


def test_a_bye_ends_everything_and_what_stands_behind_it_is_not_read(pair: Pair) -> None:
    pair.say(GENERATE, {"type": "bye"}, {**GENERATE, "id": 2})
    assert pair.bridge.is_done
    assert not pair.bridge.wants_input
    assert not pair.bridge.wants_frames
    pair.bridge.leave()
    pair.move()
    assert [type(message) for message in pair.heard] == [Hello, Request, Bye]


# --- any line, any order ---


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-3, max_value=5),
    st.floats(),
    st.text(st.characters(codec=None, exclude_categories=())),
    st.sampled_from(["hello", "request", "cancel", "credit", "bye", "ping", "pong", "generate", "AA==", "m"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
FIELDS = st.sampled_from(
    [
        *("id", "method", "model", "credit", "chunks", "data", "body", "frames", "attachments", "token", "version"),
        *("version_min", "client", "priority", "max_tokens", "features", "program", "deadline"),
    ]
)
TYPES = st.sampled_from(["hello", "request", "cancel", "credit", "ping", "pong"])


@st.composite
def near_lines(draw: st.DrawFn) -> bytes:
    """Lines that are almost messages."""
    values: dict[str, object] = draw(st.dictionaries(FIELDS, VALUES, max_size=6))
    if draw(st.booleans()):
        values |= {"type": draw(TYPES)}
    if draw(st.booleans()):
        values |= {"id": draw(st.integers(1, ID_MAX)), "method": "generate"}
    return json.dumps(values).encode()


@given(line=st.one_of(near_lines(), st.binary(max_size=200).map(lambda data: data.replace(b"\n", b""))))
@pytest.mark.parametrize("bytewise", [False, True])
def test_any_line_becomes_one_error_line_or_one_message_and_the_bridge_goes_on(bytewise: bool, line: bytes) -> None:
    pair = Pair()
    pair.say({"type": "hello"})
    heard = len(pair.heard)
    for piece in [bytes([byte]) for byte in line] if bytewise else [line]:
        pair.bridge.feed(piece)
    pair.bridge.feed(b"\n")
    told = [answer for answer in pair.move() if answer["type"] == "error"]
    sent = pair.heard[heard:]
    assert len(told) + len(sent) == (1 if line.strip() else 0)
    # With garbage behind it, the next line is still understood.
    assert pair.say({"type": "ping", "data": "AA=="}, raw=b"garbage\n")[-1] == {"type": "pong", "data": "AA=="}


class Story:
    """What may happen, at random; the daemon's side plays by the rules."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.pair = Pair()
        self.asked: list[int] = []
        self.next_id = 1

    def step(self) -> None:
        pair, bridge = self.pair, self.pair.bridge
        open_ids = pair.daemon.open_ids if pair.daemon is not None and bridge.has_session else ()
        possible = ["request", "wrong", "garbage", "write", "write all"]
        if bridge.has_session:
            possible += ["lost", "ping"]
        if bridge.has_session and not bridge.is_greeting:
            possible += ["refused"]
        if bridge.wants_session:
            possible += ["unreachable"]
        if open_ids:
            possible += ["cancel", "chunk", "chunk", "result", "error", "senseless"]
        what = self.data.draw(st.sampled_from(possible))
        one = self.data.draw(st.sampled_from(open_ids)) if open_ids else RequestId(0)
        match what:
            case "request" | "wrong":
                self.asked.append(self.next_id)
                line = {**GENERATE, "id": self.next_id, **({"credit": -1} if what == "wrong" else {})}
                self.next_id += self.data.draw(st.integers(1, 3))
                bridge.feed(json.dumps(line).encode() + b"\n")
            case "garbage":
                bridge.feed(b"garbage\n")
            case "cancel":
                bridge.feed(b'{"type": "cancel", "id": %d}\n' % one)
            case "lost":
                bridge.unsay() if bridge.is_greeting else bridge.lost()
            case "unreachable":
                bridge.unreachable(error_for("daemon_unavailable"))
            case "write":
                pair.write(self.data.draw(st.integers(1, 50)))
            case "write all":
                pair.move()
            case _:
                self._daemon_says(what, one)
        if not self.data.draw(st.booleans()):
            pair.move(write=False)

    def _daemon_says(self, what: str, one: RequestId) -> None:
        daemon = self.pair.daemon
        assert daemon is not None
        if daemon.state is not State.OPEN:
            return
        if what in ("chunk", "senseless") and not daemon.credit(one):
            return
        messages: dict[str, Callable[[], Message]] = {
            "chunk": lambda: Chunk(id=one, seq=daemon.next_seq(one), body=chunk_body()),
            "senseless": lambda: Chunk(id=one, seq=daemon.next_seq(one), body=b"\xc1"),
            "result": lambda: Result(id=one),
            "error": lambda: failure(one, "worker_died"),
            "refused": lambda: failure(None, "bad_message"),
            "ping": lambda: Ping(data=b"12345678"),
        }
        self.pair.bridge.receive(daemon.send(messages[what]()))


@settings(max_examples=200)
@given(data=st.data())
def test_every_request_gets_exactly_one_end_whatever_happens(data: st.DataObject) -> None:
    story = Story(data)
    for _ in range(data.draw(st.integers(1, 30))):
        story.step()
    pair, bridge = story.pair, story.pair.bridge
    bridge.end_input()
    pair.move()
    bridge.lost()
    pair.move()
    ends = [line["id"] for line in pair.lines if line["type"] in ("result", "error") and "id" in line]
    assert sorted(ends) == story.asked
    assert bridge.is_done
    assert bridge.waiting_bytes == 0
    assert bridge.output() == b""


# --- errors about lines ---


def test_an_error_about_a_line_without_id_has_its_number_and_a_hint_for_who_writes_it(pair: Pair) -> None:
    pair.say({"type": "hello"})
    (torn, numbered) = pair.say({**GENERATE, "body": 7}, raw=b'\n{"type": "request",\n')
    assert (torn["line"], torn["code"]) == (3, "bad_message")
    assert "docs/bridge.md" in torn["hint"]
    assert numbered["id"] == 1
    assert "line" not in numbered


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_lines_are_counted_however_they_are_cut(pair: Pair, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(pair.bridge._lines, "line_bytes_max", 20)  # pyright: ignore[reportPrivateUsage]
    data = b"\n\r\nwrong\n" + b"x" * 50 + b"\n\n7\n[]"
    for start in range(0, len(data), piece_bytes):
        pair.bridge.feed(data[start : start + piece_bytes])
    pair.bridge.end_input()
    assert [(line["line"], line["code"]) for line in pair.move()] == [
        (3, "bad_message"),
        (4, "too_large"),
        (6, "bad_message"),
        (7, "bad_message"),
    ]


# --- the end of input ---


SUBSCRIBE = {"type": "request", "id": 2, "method": "events.subscribe"}


def test_at_the_end_of_input_subscriptions_are_cancelled_and_the_rest_goes_on(pair: Pair) -> None:
    pair.say(GENERATE, SUBSCRIBE)
    pair.bridge.end_input()
    pair.move()
    assert [m for m in pair.heard if isinstance(m, Cancel)] == [Cancel(id=2, token=WELCOME.token)]
    (ended,) = pair.tell(failure(2, "cancelled"))
    assert (ended["id"], ended["code"]) == (2, "cancelled")
    assert not pair.bridge.is_done
    pair.tell(Result(id=RequestId(1)))
    assert pair.bridge.is_done
    assert len([m for m in pair.heard if isinstance(m, Cancel)]) == 1


def test_a_subscription_that_the_end_of_input_overtakes_is_cancelled_too() -> None:
    pair = Pair(welcomes=False)
    pair.say(SUBSCRIBE)
    pair.bridge.end_input()
    pair.tell(WELCOME)
    assert [type(m) for m in pair.heard] == [Hello, Request, Cancel]
