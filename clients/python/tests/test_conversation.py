"""A client's calls without a socket: what is sent, what is said when the connection is lost, what is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from enclave import calls
from enclave.conversation import Answer, Conversation
from enclave.exceptions import ConnectionLostError, DeadlineError, EnclaveError
from enclave.protocol import (
    Cancel,
    Chunk,
    Credit,
    Hello,
    Message,
    Ping,
    Pong,
    Priority,
    Request,
    Result,
    Role,
    Session,
    Welcome,
    failure,
    write_body,
)
from enclave.protocol.bodies import GenerateResult, TextChunk


class Talk:
    """A conversation and the daemon's session at its other end."""

    def __init__(self) -> None:
        self.client = Conversation("test", "test/1", Priority.NORMAL)
        self.daemon = Session(Role.DAEMON)
        (hello,) = self.sent()
        assert isinstance(hello, Hello)
        self.say(Welcome(version=1, token=bytes(16), server="1", pid=1))

    def sent(self) -> list[Message]:
        """What the daemon gets of the outbox."""
        got: list[Message] = []
        while self.client.outbox:
            got += self.daemon.receive(self.client.outbox.popleft())
        return got

    def say(self, message: Message) -> list[Answer]:
        return self.client.receive(self.daemon.send(message))

    def ask(self, call: calls.Call | None = None, now: float = 0.0) -> Answer:
        answer = self.client.begin(call or generate(), now)
        (request,) = self.sent()
        assert isinstance(request, Request)
        return answer


def generate(**options: Any) -> calls.Call:
    return calls.generate("tiny", "Once", options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def text(request_id: int, seq: int = 0) -> Chunk:
    return Chunk(id=request_id, seq=seq, body=write_body(TextChunk(text="x")))


LOST = "the connection to the daemon was lost"


def lose(talk: Talk) -> None:
    talk.client.lost(ConnectionLostError(LOST))


def test_a_ping_is_answered_behind_what_was_read() -> None:
    talk = Talk()
    talk.ask()
    talk.say(Ping(data=b"12345678"))
    (pong,) = talk.sent()
    assert isinstance(pong, Pong)
    assert pong.data == b"12345678"


def test_credit_is_granted_when_half_is_used() -> None:
    talk = Talk()
    answer = talk.ask(generate(credit=4))
    for seq in range(4):
        talk.say(text(1, seq))
    answer.take()
    talk.client.grant(answer)
    assert talk.sent() == []
    answer.take()
    talk.client.grant(answer)
    (credit,) = talk.sent()
    assert isinstance(credit, Credit)
    assert credit.chunks == 2


def test_a_call_that_had_not_begun_is_displaced_and_asked_again_elsewhere() -> None:
    first, second = Talk(), Talk()
    answer = first.ask()
    lose(first)
    assert (answer.displaced, answer.done, answer.has_news) == (True, False, True)
    assert repr(answer) == "generate 1, displaced"
    second.ask()
    second.client.begin_again(answer, 0.0)
    (request,) = second.sent()
    assert isinstance(request, Request)
    assert (request.id, request.method, answer.id, answer.displaced) == (2, "generate", 2, False)
    second.client.begin_again(answer, 0.0)
    assert second.sent() == []
    second.say(text(2))
    second.say(Result(id=2, body=write_body(GenerateResult(finish_reason="stop"))))
    assert answer.outcome().text == "x"


def test_a_call_that_had_begun_is_lost_and_says_which_it_was_and_what_else_was_lost() -> None:
    talk = Talk()
    begun, other, fresh = talk.ask(), talk.ask(calls.unload("tiny", None)), talk.ask()
    talk.say(text(1))
    lose(talk)
    with pytest.raises(ConnectionLostError) as caught:
        begun.outcome()
    assert str(caught.value).startswith(f"{LOST}: request 1 (generate of tiny) had begun to answer")
    assert caught.value.request is not None
    assert (caught.value.request.id, caught.value.request.had_begun) == (1, True)
    assert [lost.id for lost in caught.value.lost] == [1, 2]
    assert isinstance(other.error, ConnectionLostError)
    assert "request 2 (instances.unload) could not be asked again" in str(other.error)
    assert fresh.displaced
    assert [item.text for item in begun.take() if isinstance(item, TextChunk)] == ["x"]  # what came stays readable


def test_a_request_is_asked_again_once_and_no_more() -> None:
    first, second = Talk(), Talk()
    answer = first.ask()
    lose(first)
    second.client.begin_again(answer, 0.0)
    lose(second)
    assert isinstance(answer.error, ConnectionLostError)
    assert not answer.displaced


@pytest.mark.parametrize("method", ["daemon.shutdown", "models.remove", "models.alias", "config.set"])
def test_what_changes_something_is_never_asked_again(method: str) -> None:
    talk = Talk()
    call = calls.Call(method=method)
    answer = talk.ask(call)
    lose(talk)
    assert answer.done


def test_a_cancelled_call_is_not_asked_again() -> None:
    talk = Talk()
    answer = talk.ask()
    talk.client.cancel(answer)
    lose(talk)
    assert isinstance(answer.error, ConnectionLostError)


def test_a_displaced_call_can_be_cancelled() -> None:
    talk = Talk()
    answer = talk.ask()
    lose(talk)
    talk.client.cancel(answer)
    assert (answer.done, answer.error and answer.error.code) == (True, "cancelled")


def test_a_deadline_goes_on_running_while_the_connection_is_lost() -> None:
    first, second = Talk(), Talk()
    early, late = first.ask(generate(deadline=10.0), now=100.0), first.ask(generate(deadline=1.0), now=100.0)
    lose(first)
    second.client.begin_again(early, 104.0)
    (request,) = second.sent()
    assert isinstance(request, Request)
    assert request.deadline == 6.0
    with pytest.raises(DeadlineError):
        second.client.begin_again(late, 104.0)


def test_after_the_own_bye_nothing_is_displaced() -> None:
    talk = Talk()
    answer = talk.ask()
    talk.client.leave()
    assert (answer.done, answer.error and answer.error.code) == (True, "cancelled")


@pytest.mark.parametrize("code", ["busy", "shutting_down", "bad_message"])
def test_what_the_daemon_says_of_the_session_is_what_its_calls_end_with(code: str) -> None:
    talk = Talk()
    answer = talk.ask()
    talk.say(failure(None, code))
    assert answer.error is not None
    assert answer.error.code == code


def test_cancelling_twice_sends_one_cancel_and_after_the_end_none() -> None:
    talk = Talk()
    answer = talk.ask()
    talk.client.cancel(answer)
    talk.client.cancel(answer)
    assert [type(message) for message in talk.sent()] == [Cancel]
    talk.say(failure(1, "cancelled"))
    talk.client.cancel(answer)
    assert talk.sent() == []


def test_more_open_requests_than_may_be_are_busy_with_a_time_to_come_back() -> None:
    talk = Talk()
    for _ in range(256):
        talk.ask()
    with pytest.raises(EnclaveError) as caught:
        talk.ask()
    assert (caught.value.code, caught.value.retryable) == ("busy", True)
    assert caught.value.retry_after
    assert caught.value.numbers["open_requests_max"] == 256


def test_after_the_end_nothing_is_taken_in_any_more() -> None:
    talk = Talk()
    answer = talk.ask()
    late = talk.daemon.send(text(1))
    lose(talk)
    assert talk.client.receive(late) == []
    assert (answer.has_items, answer.displaced) == (False, True)


def hand_on(first: Talk, now: float = 0.0) -> tuple[Talk, list[Request]]:
    """The next conversation, and what it asks again."""
    second = Talk()
    second.client.adopt(first.client.hand_over(), now)
    return second, [message for message in second.sent() if isinstance(message, Request)]


def test_what_is_displaced_is_asked_again_in_the_order_of_asking() -> None:
    first = Talk()
    answers = [first.ask(generate(max_tokens=number)) for number in range(1, 4)]
    lose(first)
    second, requests = hand_on(first)
    assert [request.max_tokens for request in requests] == [1, 2, 3]
    assert not any(answer.displaced for answer in answers)
    assert (first.client.open_count, second.client.open_count) == (0, 3)


def test_of_what_is_displaced_with_one_key_the_last_is_asked_again_and_the_others_are_cancelled() -> None:
    first = Talk()
    old, other, new = (first.ask(generate(supersedes=key)) for key in ("a", "b", "a"))
    lose(first)
    _, requests = hand_on(first)
    assert [request.supersedes for request in requests] == ["b", "a"]
    assert old.error is not None
    assert old.error.code == "cancelled"
    assert (other.done, new.done) == (False, False)


def test_what_was_superseded_by_a_call_that_is_not_asked_again_is_not_asked_either() -> None:
    first = Talk()
    old, new = first.ask(generate(supersedes="a")), first.ask(generate(supersedes="a"))
    first.client.cancel(new)
    lose(first)
    assert (old.done, old.error and old.error.code) == (True, "cancelled")
    assert isinstance(new.error, ConnectionLostError)


def test_what_cannot_be_asked_again_fails_alone() -> None:
    first = Talk()
    late, other = first.ask(generate(deadline=1.0)), first.ask()
    lose(first)
    _, requests = hand_on(first, 2.0)
    assert (late.error and late.error.code, len(requests), other.done) == ("deadline", 1, False)


def test_what_is_displaced_waits_for_the_conversation_after_one_that_is_over() -> None:
    first, over = Talk(), Talk()
    first.ask()
    lose(first)
    lose(over)
    over.client.adopt(first.client.hand_over(), 0.0)
    _, requests = hand_on(over)
    assert len(requests) == 1


def test_one_key_is_one_key_over_two_lost_conversations() -> None:
    first, second = Talk(), Talk()
    old, new = first.ask(generate(supersedes="a")), second.ask(generate(supersedes="a"))
    lose(first)
    lose(second)
    second.client.adopt(first.client.hand_over(), 0.0)
    _, requests = hand_on(second)
    assert (old.error and old.error.code, new.done, len(requests)) == ("cancelled", False, 1)


def test_closing_ends_what_is_displaced_too() -> None:
    talk = Talk()
    answer = talk.ask()
    lose(talk)
    talk.client.leave()
    assert (answer.done, answer.error and answer.error.code) == (True, "cancelled")


def test_a_call_that_is_cancelled_while_it_is_asked_again_is_cancelled_there() -> None:
    first, second = Talk(), Talk()
    answer = first.ask()
    lose(first)
    answer.cancelled = True  # by another thread, which found it displaced
    second.client.begin_again(answer, 0.0)
    assert [type(message) for message in second.sent()] == [Request, Cancel]


def test_cancelling_where_a_call_was_asked_first_leaves_its_cancel_to_where_it_is_asked_now() -> None:
    first, second = Talk(), Talk()
    answer = first.ask()
    lose(first)
    second.client.begin_again(answer, 0.0)
    second.sent()
    first.client.cancel(answer)
    second.client.cancel(answer)
    second.client.cancel(answer)
    assert [type(message) for message in second.sent()] == [Cancel]


def test_a_call_without_credit_gets_some_when_somebody_waits() -> None:
    talk = Talk()
    answer = talk.ask(generate(credit=0))
    talk.client.grant(answer)
    talk.client.grant(answer)
    (credit,) = talk.sent()
    assert isinstance(credit, Credit)
    assert credit.chunks == 1
    talk.say(text(1))
    answer.take()
    assert answer.is_credit_due


def test_what_is_cancelled_does_not_count_as_open() -> None:
    talk = Talk()
    answer = talk.ask()
    talk.client.cancel(answer)
    assert talk.client.open_count == 0


def test_a_refusal_names_the_seconds_and_hides_how_it_was_found() -> None:
    talk = Talk()
    for _ in range(256):
        talk.ask()
    with pytest.raises(EnclaveError) as caught:
        talk.ask()
    assert f"after {caught.value.retry_after:g} s" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
