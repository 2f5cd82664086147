"""The session machine: what may follow what, what a violation does, and what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import (
    Bye,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Limits,
    LocalProtocolError,
    Message,
    Ping,
    Pong,
    Progress,
    RemoteProtocolError,
    Request,
    Result,
    Role,
    Session,
    Stage,
    State,
    Versions,
    Welcome,
    attach,
    failure,
)
from enclave.protocol.messages import CREDIT_MAX
from enclave.protocol.session import TRANSITIONS, Step

if TYPE_CHECKING:
    from tests.protocol.conftest import SessionPair

TOKEN = bytes(range(16))


def packed(**fields: Any) -> bytes:
    return msgpack.packb(fields)  # pyright: ignore


def request(number: int, **fields: Any) -> Request:
    return Request(id=number, method="generate", model="tiny", **fields)


def test_a_request_lives_from_its_request_to_its_result(pair: SessionPair) -> None:
    pair.up(request(1, body=b"prompt"))
    pair.down(Progress(id=1, stage=Stage.QUEUED, position=1))
    pair.down(Chunk(id=1, seq=0, count=2, body=b"ab"), Chunk(id=1, seq=2, body=b"c"))
    assert pair.client.is_open(1)
    pair.down(Result(id=1, body=b"r"))
    assert pair.client.open_ids == ()


def test_the_session_fills_in_a_clients_token(pair: SessionPair) -> None:
    (received,) = pair.up(request(1))
    assert isinstance(received, Request)
    assert received.token == TOKEN


def test_a_body_and_attachments_arrive_as_they_were_sent(pair: SessionPair) -> None:
    infos, frames = attach([("image/png", b"\x89"), ("float32[1]", b"abcd")])
    (received,) = pair.up(request(1, body=b"\xc1 opaque", attachments=infos, frames=frames))
    assert isinstance(received, Request)
    assert (received.body, received.frames) == (b"\xc1 opaque", (b"\x89", b"abcd"))


def test_requests_may_be_open_side_by_side_and_end_in_any_order(pair: SessionPair) -> None:
    pair.up(request(1), request(2), request(7))
    pair.down(Result(id=7), failure(1, "busy"), Result(id=2))
    assert pair.client.next_id() == 8


# --- the table ---


SAMPLES: dict[Step, Message] = {
    Step.HELLO: Hello(version=1, client="x"),
    Step.WELCOME: Welcome(version=1, token=TOKEN, server="1", pid=1),
    Step.REQUEST: request(5),
    Step.CANCEL: Cancel(id=1),
    Step.CREDIT: Credit(id=1, chunks=1),
    Step.PING: Ping(),
    Step.BYE: Bye(),
    Step.PROGRESS: Progress(id=1, stage=Stage.QUEUED),
    Step.CHUNK: Chunk(id=1, seq=0),
    Step.RESULT: Result(id=1),
    Step.ERROR: failure(1, "busy"),
    Step.REFUSAL: failure(None, "bad_message"),
    Step.PONG: Pong(),
}


def session_in(role: Role, state: State) -> Session:
    """A session of this side in this state, with request 1 open where there can be one."""
    session = Session(role)
    other = Session(role.other)

    def move(sender: Role, message: Message) -> None:
        if sender is role:
            session.send(message)
        else:
            session.receive(other.send(message) if other.state is not State.ERROR else [])

    client, daemon = (session, other) if role is Role.CLIENT else (other, session)
    if state is State.ERROR:
        with pytest.raises(RemoteProtocolError):
            session.receive([b"\xc1"])
    if state in (State.GREETED, State.OPEN, State.CLOSED):
        daemon.receive(client.send(SAMPLES[Step.HELLO]))
    if state in (State.OPEN, State.CLOSED):
        client.receive(daemon.send(SAMPLES[Step.WELCOME]))
        daemon.receive(client.send(request(1)))
    if state is State.CLOSED:
        move(Role.CLIENT, Bye())
    assert session.state is state
    return session


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step, ids=lambda step: step.name)
def test_what_may_be_sent_is_what_the_table_says_and_a_refused_message_changes_nothing(
    role: Role, state: State, step: Step
) -> None:
    session = session_in(role, state)
    before = (session.state, session.open_ids, session.credit(1), session.next_id(), session.token)
    target = TRANSITIONS[state].get((role, step))
    if target is None:
        with pytest.raises(LocalProtocolError):
            session.send(SAMPLES[step])
        assert (session.state, session.open_ids, session.credit(1), session.next_id(), session.token) == before
    else:
        session.send(SAMPLES[step])
        assert session.state is target


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", [State.NEW, State.GREETED, State.OPEN])
@pytest.mark.parametrize("step", Step, ids=lambda step: step.name)
def test_what_is_accepted_is_what_the_table_says_for_the_other_side(role: Role, state: State, step: Step) -> None:
    receiver = session_in(role, state)
    frames = wire(SAMPLES[step])
    target = TRANSITIONS[state].get((role.other, step))
    if target is None:
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.receive(frames)
        assert caught.value.fatal
        assert receiver.state is State.ERROR
    else:
        assert len(receiver.receive(frames)) == 1
        assert receiver.state is target


def wire(message: Message) -> list[bytes]:
    """The frames of a message with the token filled in, whoever may send it."""
    from dataclasses import replace

    from enclave.protocol.messages import to_frames

    if isinstance(message, (Request, Cancel, Credit, Bye, Pong)):
        message = replace(message, token=TOKEN)
    return to_frames(message, Limits())


def test_only_pings_and_pongs_go_both_ways() -> None:
    senders = {step: {role for rows in TRANSITIONS.values() for role, known in rows if known is step} for step in Step}
    assert {step for step, roles in senders.items() if len(roles) == 2} == {Step.PING, Step.PONG}


def test_a_ping_is_answered_with_its_data_whoever_asks(pair: SessionPair) -> None:
    (ping,) = pair.down(Ping(data=b"12345678"))
    assert ping == Ping(data=b"12345678")
    (pong,) = pair.up(Pong(data=b"12345678"))
    assert isinstance(pong, Pong)
    assert (pong.data, pong.token) == (b"12345678", TOKEN)
    assert pair.up(Ping(data=b"x")) == [Ping(data=b"x")]
    assert pair.down(Pong(data=b"x")) == [Pong(data=b"x")]


@pytest.mark.parametrize("token", [None, b"", b"x" * 16])
def test_a_clients_pong_without_its_token_ends_the_session(pair: SessionPair, token: bytes | None) -> None:
    assert pair.refused([packed(type="pong", data=b"1", token=token)]).code == "unauthorised"


# --- messages that cross ---


def test_a_cancel_or_a_credit_that_crosses_the_result_is_dropped(pair: SessionPair) -> None:
    pair.up(request(1))
    cancel = pair.client.send(Cancel(id=1))
    credit = pair.client.send(Credit(id=1, chunks=1))
    pair.client.receive(pair.daemon.send(Result(id=1)))
    assert pair.daemon.receive(cancel) == []
    assert pair.daemon.receive(credit) == []
    assert pair.daemon.state is State.OPEN


def test_what_arrives_after_the_own_bye_is_dropped(pair: SessionPair) -> None:
    pair.up(request(1))
    chunk = pair.daemon.send(Chunk(id=1, seq=0))
    pair.client.send(Bye())
    assert pair.client.receive(chunk) == []
    assert pair.client.receive([b"\xc1"]) == []


def test_a_cancel_of_a_request_that_was_never_made_is_fatal(pair: SessionPair) -> None:
    error = pair.refused([packed(type="cancel", id=9, token=TOKEN)])
    assert (error.fatal, error.field) == (True, "id")


def test_a_cancelled_request_still_gets_its_end(pair: SessionPair) -> None:
    pair.up(request(1), Cancel(id=1))
    assert pair.daemon.is_open(1)
    pair.down(failure(1, "cancelled"))


# --- ids, seq and credit ---


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_id_is_never_used_twice_nor_a_smaller_one(pair: SessionPair, number: int) -> None:
    pair.up(request(3))
    pair.down(Result(id=3))
    with pytest.raises(LocalProtocolError, match="above"):
        pair.client.send(request(number))
    error = pair.refused([packed(type="request", id=number, token=TOKEN, method="m"), b""])
    assert error.fatal


def test_a_chunk_out_of_order_is_refused_on_both_sides(pair: SessionPair) -> None:
    pair.up(request(1))
    pair.down(Chunk(id=1, seq=0, count=3))
    for seq in (0, 2, 4):
        with pytest.raises(LocalProtocolError, match="seq"):
            pair.daemon.send(Chunk(id=1, seq=seq))
    with pytest.raises(RemoteProtocolError, match="seq"):
        pair.client.receive(wire(Chunk(id=1, seq=4)))


def test_an_answer_after_the_end_is_refused_on_both_sides(pair: SessionPair) -> None:
    pair.up(request(1))
    pair.down(Result(id=1))
    for late in (Result(id=1), failure(1, "busy"), Chunk(id=1, seq=0), Progress(id=1, stage=Stage.QUEUED)):
        with pytest.raises(LocalProtocolError, match="not open"):
            pair.daemon.send(late)
    with pytest.raises(RemoteProtocolError, match="not open"):
        pair.client.receive(wire(Result(id=1)))


def test_each_chunk_message_costs_one_credit_however_many_values_it_holds(pair: SessionPair) -> None:
    pair.up(request(1, credit=2))
    pair.down(Chunk(id=1, seq=0, count=100), Chunk(id=1, seq=100))
    assert pair.daemon.credit(1) == 0
    with pytest.raises(LocalProtocolError, match="credit"):
        pair.daemon.send(Chunk(id=1, seq=101))
    pair.up(Credit(id=1, chunks=3))
    assert pair.daemon.credit(1) == 3
    pair.down(Chunk(id=1, seq=101))


def test_a_daemon_that_overdraws_is_refused(pair: SessionPair) -> None:
    pair.up(request(1, credit=0))
    with pytest.raises(RemoteProtocolError, match="credit"):
        pair.client.receive(wire(Chunk(id=1, seq=0)))


def test_credit_has_an_upper_bound(pair: SessionPair) -> None:
    pair.up(request(1, credit=CREDIT_MAX))
    with pytest.raises(LocalProtocolError, match="chunks"):
        pair.client.send(Credit(id=1, chunks=1))
    assert pair.refused(wire(Credit(id=1, chunks=1))).field == "chunks"


# --- refusals ---


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": 5}, "method"),
        ({}, "method"),
        ({"method": "m", "deadline": -1}, "deadline"),
        ({"method": "m", "deadline": float("nan")}, "deadline"),
        ({"method": "m", "choices": True}, "choices"),
        ({"method": "m", "priority": "urgent"}, "priority"),
        ({"method": "m", "attachments": [{"kind": "a", "size_bytes": 1}]}, "attachments"),
        ({"method": "m", "attachments": [{"kind": "a"}]}, "attachments[0].size_bytes"),
    ],
)
def test_a_bad_field_in_a_request_is_answered_with_its_id_and_the_session_goes_on(
    pair: SessionPair, fields: dict[str, Any], field: str
) -> None:
    error = pair.refused([packed(type="request", id=4, token=TOKEN, **fields), b""])
    assert (error.code, error.field, error.request_id, error.fatal) == ("bad_request", field, 4, False)
    frames = pair.daemon.refuse(error)
    assert pair.daemon.open_ids == ()
    twin = SessionPairLike(pair)
    (answer,) = twin.client.receive(frames)
    assert isinstance(answer, Error)
    assert (answer.id, answer.code, answer.field) == (4, "bad_request", field)
    assert pair.daemon.receive(wire(request(5)))


class SessionPairLike:
    """A client that believes it has sent request 4."""

    def __init__(self, pair: SessionPair) -> None:
        self.client = pair.client
        self.client.send(request(4))


def test_a_refused_request_waits_for_exactly_one_error(pair: SessionPair) -> None:
    error = pair.refused([packed(type="request", id=1, token=TOKEN), b""])
    assert pair.daemon.open_ids == (1,)
    pair.daemon.refuse(error)
    with pytest.raises(LocalProtocolError):
        pair.daemon.refuse(error)


@pytest.mark.parametrize("token", [None, b"", b"x" * 16, "text", 5])
def test_a_wrong_token_ends_the_session_and_opens_no_request(pair: SessionPair, token: object) -> None:
    error = pair.refused([packed(type="request", id=1, token=token, method="m"), b""])
    assert error.fatal
    assert pair.daemon.state is State.ERROR
    assert pair.daemon.open_ids == ()


def test_before_hello_nothing_but_a_hello_or_a_ping_is_taken(fresh: SessionPair) -> None:
    error = fresh.refused([packed(type="request", id=1, method="m", token=TOKEN), b""])
    assert (error.code, error.fatal) == ("unauthorised", True)


def test_an_empty_token_is_not_the_token_of_a_session_without_one(fresh: SessionPair) -> None:
    assert fresh.refused([packed(type="ping", token=b"")]).code == "unauthorised"


def test_another_version_is_told_even_when_its_hello_looks_different(fresh: SessionPair) -> None:
    error = fresh.refused([packed(type="hello", version=2, who=["somebody"])])
    numbers = {"client": 2, "client_min": 2, "daemon": 1, "daemon_min": 1}
    assert (error.code, error.numbers) == ("version_mismatch", numbers)
    fresh.client.send(Hello(version=1, client="x"))
    (answer,) = fresh.client.receive(fresh.daemon.refuse(error))
    assert isinstance(answer, Error)
    assert answer.numbers == numbers
    assert fresh.client.state is State.CLOSED


@given(st.tuples(*[st.integers(0, 4)] * 4))
def test_both_go_by_the_newest_version_that_both_speak_or_say_that_there_is_none(bounds: tuple[int, ...]) -> None:
    ours, theirs = (Versions(min(pair), max(pair)) for pair in (bounds[:2], bounds[2:]))
    common = {*range(ours.oldest, ours.newest + 1)} & {*range(theirs.oldest, theirs.newest + 1)}
    client, daemon = Session(Role.CLIENT, versions=theirs), Session(Role.DAEMON, versions=ours)
    hello = client.send(Hello(version=theirs.newest, version_min=theirs.oldest, client="x"))
    if not common:
        with pytest.raises(RemoteProtocolError) as caught:
            daemon.receive(hello)
        assert caught.value.code == "version_mismatch"
        return
    daemon.receive(hello)
    assert daemon.version == max(common)
    for version in {ours.oldest, ours.newest} - common:
        with pytest.raises(LocalProtocolError):
            daemon.send(Welcome(version=version, token=TOKEN, server="1", pid=1))
    client.receive(daemon.send(Welcome(version=max(common), token=TOKEN, server="1", pid=1)))
    assert client.version == max(common)
    assert (client.state, daemon.state) == (State.OPEN, State.OPEN)


@pytest.mark.parametrize("fields", [{"version": "1"}, {"version": True}, {"version": 1, "version_min": "0"}, {}])
def test_a_hello_whose_version_is_no_number_is_a_bad_message(fresh: SessionPair, fields: dict[str, Any]) -> None:
    assert fresh.refused([packed(type="hello", client="x", **fields)]).code == "bad_message"


def test_a_hello_that_ends_below_where_it_begins_is_spoken_by_nobody(fresh: SessionPair) -> None:
    assert fresh.refused([packed(type="hello", client="x", version=1, version_min=5)]).code == "version_mismatch"


def test_a_daemon_of_another_version_is_refused_by_the_client(fresh: SessionPair) -> None:
    fresh.client.send(Hello(version=1, client="x"))
    with pytest.raises(RemoteProtocolError) as caught:
        fresh.client.receive(wire_unchecked(type="welcome", version=2, token=TOKEN, server="2", pid=1))
    assert caught.value.code == "version_mismatch"


def wire_unchecked(**fields: Any) -> list[bytes]:
    return [packed(**fields)]


def test_after_garbage_the_session_is_over_for_good(pair: SessionPair) -> None:
    error = pair.refused([b"\xc1"])
    assert error.fatal
    assert pair.refused(wire(request(1))).fatal
    (answer,) = pair.client.receive(pair.daemon.refuse(error))
    assert isinstance(answer, Error)
    assert answer.id is None
    assert pair.client.state is State.CLOSED


def test_too_many_open_requests_are_busy_and_the_session_goes_on(pair: SessionPair) -> None:
    pair.up(request(1), request(2), request(3))
    error = pair.refused(wire(request(4)))
    assert (error.code, error.request_id, error.fatal) == ("busy", 4, False)
    with pytest.raises(LocalProtocolError) as caught:
        pair.client.send(request(4))
    assert caught.value.code == "busy"
    assert caught.value.numbers == error.numbers == {"open_requests": 3, "open_requests_max": 3}
    assert caught.value.retry_after == error.retry_after is not None
    assert pair.client.open_ids == (1, 2, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"body": bytes(1001)},
        {"attachments": attach([("a", bytes(101))])[0], "frames": (bytes(101),)},
        {"attachments": attach([("a", b"")] * 3)[0], "frames": (b"",) * 3},
        {"body": bytes(950), "attachments": attach([("a", bytes(60))])[0], "frames": (bytes(60),)},
    ],
    ids=["body", "attachment", "attachments", "altogether"],
)
def test_what_is_too_large_is_refused_before_sending_and_on_arrival(pair: SessionPair, fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError) as local:
        pair.client.send(request(1, **fields))
    error = pair.refused(wire(request(1, **fields)))
    assert local.value.code == error.code == "too_large"
    assert (error.request_id, error.fatal) == (1, False)


def test_the_words_of_a_refusal_never_hold_what_was_sent(pair: SessionPair) -> None:
    secret = "my diary"
    for fields in ({"method": [secret]}, {"method": "m", "priority": secret}, {"method": "m", "adapter": {secret: 1}}):
        number = pair.daemon.next_id()
        error = pair.refused([packed(type="request", id=number, token=TOKEN, **fields), b""])
        assert secret not in error.message
        pair.daemon.refuse(error)


def test_the_repr_tells_state_and_open_requests_and_no_token(pair: SessionPair) -> None:
    (received,) = pair.up(request(1, body=b"prompt"))
    assert repr(pair.daemon) == "<Session daemon open, 1 open>"
    assert "prompt" not in repr(received)
    assert repr(TOKEN)[2:-1] not in repr(received) + repr(pair.daemon.welcome)
