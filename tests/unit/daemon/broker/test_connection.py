"""A session's calls together: whatever the client reads, grants, asks and cancels, nothing is lost or forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from stand_ins import Conversation

from enclave.protocol.messages import Cancel, Chunk, Credit, Error, Limits, RequestId, Result
from enclaved.daemon.broker.call import Call
from enclaved.daemon.refusal import RefusalError

NUMBERS = st.integers(0, 9)
ACTS = st.one_of(
    st.tuples(st.sampled_from(["chunk", "large chunk", "grant", "ask", "ask without credit"]), NUMBERS),
    st.tuples(st.sampled_from(["cancel", "result", "large result", "fail"]), NUMBERS),
    st.tuples(st.sampled_from(["be deaf", "listen", "turn"]), st.just(0)),
)


class Desk:
    """A client and its calls, with somebody who works on those that are taken on."""

    def __init__(self, unread_bytes: int) -> None:
        self.conversation = Conversation(limits=Limits(unread_bytes=unread_bytes))
        self.connection = self.conversation.connection
        self.client = self.conversation.client
        first = self.conversation.call
        self.worked_on = {first.request.id: first}
        self.chunks = 0
        self.made: dict[int, bytes] = {}
        self.unwanted: set[int] = set()
        for _ in range(3):
            self.ask(5)
        self.conversation.deaf = True

    def ask(self, credit: int) -> None:
        call = self.conversation.another(credit=credit)
        if self.connection.take_on(call):
            self.work_on(call)

    def work_on(self, call: Call) -> None:
        """The broker's part."""
        if call.wants_cancel:
            call.error(RefusalError("cancelled", ""))
        elif not call.has_ended:
            self.worked_on[call.request.id] = call
        self.connection.start_deferred()

    def turn(self) -> None:
        """The loop comes to what was put off and may begin now."""
        while self.conversation.started:
            self.work_on(self.conversation.started.pop(0))

    def make(self, call: Call, size_bytes: int) -> None:
        if call not in self.connection.paused and not call.wants_cancel:
            self.chunks += 1
            body = bytes([self.chunks % 256]) * size_bytes
            self.made[call.request.id] = self.made.get(call.request.id, b"") + body
            call.chunk(body, 1)

    def cancel(self, request_id: int) -> None:
        self.unwanted.add(request_id)
        self.connection.session.receive(self.client.send(Cancel(id=RequestId(request_id))))
        if call := self.connection.calls.get(request_id):
            call.cancel()

    def act(self, what: str, number: int) -> None:
        at_work = [call for call in self.worked_on.values() if not call.has_ended]
        call = at_work[number % len(at_work)] if at_work else None
        open_ids = self.client.open_ids
        match what:
            case "chunk" | "large chunk" if call is not None:
                self.make(call, 3 if what == "chunk" else 700)
            case "result" | "large result" if call is not None:
                call.result(Result(id=call.request.id, body=bytes(3000 if what == "large result" else 0)))
            case "fail" if call is not None:
                call.error(RefusalError("internal", "no"))
            case "ask" | "ask without credit":
                self.ask(5 if what == "ask" else 0)
            case "grant" if open_ids:
                self.conversation.grant(Credit(id=open_ids[number % len(open_ids)], chunks=number + 1))
            case "cancel" if open_ids:
                self.cancel(open_ids[number % len(open_ids)])
            case "be deaf":
                self.conversation.deaf = True
            case "listen":
                self.conversation.listen()
            case "turn":
                self.turn()
            case _:
                pass

    def finish(self) -> None:
        """The client reads and grants what it is owed, and whoever works ends."""
        self.conversation.listen()
        for _ in range(1000):
            self.turn()
            for call in self.worked_on.values():
                if call.wants_cancel:
                    call.error(RefusalError("cancelled", ""))
                else:
                    call.result(Result(id=call.request.id))
            if not self.client.open_ids:
                return
            for request_id in self.client.open_ids:
                if self.connection.session.credit(request_id) == 0:
                    self.conversation.grant(Credit(id=request_id, chunks=5))
            self.conversation.listen()
        raise AssertionError(f"{self.client.open_ids} have no end: {self.connection!r}")


@given(st.lists(ACTS, min_size=5, max_size=60), st.sampled_from([1000, 5000]))
def test_a_client_that_reads_in_the_end_gets_all_of_it_in_order_and_owes_nothing(
    acts: Sequence[tuple[str, int]], unread_bytes: int
) -> None:
    async def live() -> Desk:
        desk = Desk(unread_bytes)
        for what, number in acts:
            desk.act(what, number)
        desk.finish()
        return desk

    desk = asyncio.run(live())
    conversation, connection = desk.conversation, desk.connection
    for request_id, made in desk.made.items():
        got = b"".join(chunk.body for chunk in conversation.of(Chunk) if chunk.id == request_id)
        assert made.startswith(got) if request_id in desk.unwanted else made == got
    ends = [message.id or 0 for message in conversation.received if isinstance(message, (Result, Error))]
    assert sorted(ends) == sorted({*ends})
    assert not connection.calls
    assert not connection.paused
    assert " 0 bytes wait" in repr(connection)
