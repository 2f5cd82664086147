"""One peer's session on the daemon's side, with its calls and what it is owed. No socket: frames go to `post`.

What an answer costs the daemon is bounded here. Two things are counted against the session's `unread_bytes`: chunks and
ends that wait because the client gave no credit, and what was sent and not yet read (`Window`). At the bound whoever
makes chunks is asked to pause. When as much was sent and not read, nothing more is sent, and what is asked anew is put
off; a client that goes on asking all the same is hung up on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from enclave.protocol.errors import BUSY_SECONDS, LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    Chunk,
    Error,
    Limits,
    Message,
    Ping,
    Pong,
    Progress,
    Request,
    Result,
    Welcome,
    failure,
    refusal,
)
from enclave.protocol.session import Role, Session, State
from enclaved.core.ids import ClientId
from enclaved.core.reasons import Reason, Why
from enclaved.daemon.broker.call import Call
from enclaved.daemon.broker.client import Client
from enclaved.daemon.broker.peer import Peer
from enclaved.daemon.broker.reasons import refusal_of
from enclaved.daemon.broker.window import Window

logger = logging.getLogger("enclaved.broker")


class Connection:
    """A peer by its routing id."""

    def __init__(
        self,
        peer: Peer,
        client_id: ClientId,
        limits: Limits,
        post: Callable[[list[bytes]], None],
        nonce: Callable[[], bytes],
        start: Callable[[Call], object],
    ) -> None:
        """`post` sends frames; when the peer turns out to be gone it calls `leave`. `nonce` makes data for pings.
        `start` has a call answered that could not be when it came."""
        self.peer = peer
        self.refused = 0
        """Sessions of it that ended because it broke the rules."""
        self.crossed = 0
        """Messages of the session that ended last, which came after its end."""
        self.calls: dict[int, Call] = {}
        self.paused: set[Call] = set()
        self._limits = limits
        self._post = post
        self._nonce = nonce
        self._start = start
        self._window = Window(limits.unread_bytes)
        self._waiting_bytes = 0
        """Of chunks and ends that cannot be sent yet."""
        self._queued_bytes: dict[int, int] = {}
        """Of the requests that nobody works on yet, by id."""
        self._deferred: dict[Call, tuple[float, asyncio.TimerHandle | None]] = {}
        """Calls that nobody answers before the client has read more, in order: since when, and their deadline."""
        self._rooms: list[asyncio.Future[None]] = []
        """Of answers that are not made before then."""
        self._gone = False
        self.begin(client_id)

    def __repr__(self) -> str:
        return f"<Connection of {self.client}, {self.session!r}, {self._waiting_bytes} bytes wait, {self._window!r}>"

    def begin(self, client_id: ClientId, *, is_over: bool = False) -> None:
        """A new session; of the one before, everything that is open is cancelled. `is_over`: it ended by an error, and
        the client may not know it yet."""
        self.cancel_all()
        self._was_refused = is_over
        self.client = Client(client_id, pid=self.peer.pid, program=self.peer.program)
        self.session = Session(Role.DAEMON, self._limits)

    @property
    def is_open(self) -> bool:
        """Whether hello and welcome have been said."""
        return self.session.state is State.OPEN

    @property
    def is_over(self) -> bool:
        """Whether a session ended by an error and the client has not said hello since."""
        return self._was_refused and self.session.hello is None

    @property
    def is_burst(self) -> bool:
        """Whether its peer goes on asking for more without reading anything."""
        return self._window.is_burst

    # --- about the session: said whatever the client reads ---

    def say(self, message: Message) -> None:
        """Sends a message that is about no call."""
        if not self._gone:
            self._write(self.session.send(message))

    def welcome(self, message: Welcome) -> None:
        """Begins the session. The client says what it has read, also of the session before, whose pings it dropped."""
        is_behind = self._window.unread_messages > 0
        self.say(message)
        if is_behind:
            self._ask()

    def refuse(self, error: RemoteProtocolError) -> None:
        """Answers a message that cannot be accepted."""
        try:
            self.say(refusal(error))
        except LocalProtocolError as unsendable:
            logger.error("a refusal could not be sent to %s: %s", self.client.id, unsendable)

    def answered(self, pong: Pong) -> None:
        """The client says what it has read."""
        if self._window.answered(pong.data):
            self.pump()
            self.start_deferred()

    # --- calls ---

    def take_on(self, call: Call) -> bool:
        """Counts a call as open; False when it is to be answered later, since its client does not read."""
        self.calls[call.request.id] = call
        if self._window.is_open and not self._deferred:
            return True
        loop, deadline = asyncio.get_running_loop(), call.request.deadline
        timer = None if deadline is None else loop.call_later(deadline, self._drop_deferred, call, Why.DEADLINE)
        self._deferred[call] = loop.time(), timer
        call.on_cancel = lambda: self._drop_deferred(call, Why.CANCELLED)
        return False

    def start_deferred(self) -> None:
        """Has the next call answered, if the client reads. Its answer counts before the next one's turn comes."""
        if not self._window.is_open:
            return
        rooms, self._rooms = self._rooms, []
        for room in rooms:
            if not room.done():
                room.set_result(None)
        if self._deferred:
            call = next(iter(self._deferred))
            since = self._no_longer_deferred(call)
            if (deadline := call.request.deadline) is not None:
                left = max(0.0, deadline - (asyncio.get_running_loop().time() - since))
                call.request = replace(call.request, deadline=left)
            self._start(call)

    def _no_longer_deferred(self, call: Call) -> float:
        since, timer = self._deferred.pop(call)
        if timer is not None:
            timer.cancel()
        return since

    def _drop_deferred(self, call: Call, why: Why) -> None:
        if call in self._deferred:
            self._no_longer_deferred(call)
            call.error(refusal_of(Reason(why, {"waited_seconds": call.request.deadline or 0.0})))

    def admit(self, request: Request) -> None:
        """Counts a request that arrived. Raises RemoteProtocolError (`busy`) when too much waits already."""
        size_bytes = len(request.body) + sum(map(len, request.frames))
        queued_bytes = sum(self._queued_bytes.values())
        if queued_bytes and queued_bytes + size_bytes > self._limits.queued_bytes:
            raise RemoteProtocolError(
                f"requests of {queued_bytes:,} bytes wait already; with this one they would be more than the "
                f"{self._limits.queued_bytes:,} that may",
                code="busy",
                numbers={"queued_bytes": queued_bytes, "queued_bytes_max": self._limits.queued_bytes},
                retry_after=BUSY_SECONDS,
            ).about(request.id)
        if size_bytes:
            self._queued_bytes[request.id] = size_bytes

    def pump(self) -> None:
        """Sends whatever can be sent now, a message of each call in turn."""
        calls = list(self.calls.values())
        while calls and self._window.is_open:
            calls = [call for call in calls if call.pump_one()]
        for call in list(self.calls.values()):
            call.pump()

    def cancel_all(self) -> None:
        """Nobody waits for the open calls any more."""
        calls, self.calls = list(self.calls.values()), {}
        for call in calls:
            call.cancel()
        self._waiting_bytes = 0
        self._queued_bytes.clear()

    def leave(self) -> None:
        """The peer has gone: nothing is sent any more."""
        self._gone = True
        self.cancel_all()

    # --- what a call needs (Outlet) ---

    def delivered(self, call: Call) -> None:
        self._queued_bytes.pop(call.request.id, None)

    def credit(self, call: Call) -> int:
        return self.session.credit(call.request.id) if self.calls.get(call.request.id) is call else 0

    def takes(self) -> bool:
        return self._window.is_open

    def stream(self, call: Call, body: bytes, count: int) -> bool:
        request_id = call.request.id
        if self.session.credit(request_id) < 1 or not self._window.is_open or self.calls.get(request_id) is not call:
            return False
        try:
            frames = self.session.send_chunk(request_id, body, count)
        except LocalProtocolError as error:
            self._break_off(call, error)
        else:
            self._write(frames)
        return True

    def answer(self, call: Call, message: Progress | Chunk | Result | Error) -> None:
        if self._gone or self.calls.get(call.request.id) is not call:
            return
        try:
            frames = self.session.send(message)
        except LocalProtocolError as error:
            if isinstance(message, Progress):
                logger.error("progress of %s could not be sent: %s", call.id, error)
            else:
                self._break_off(call, error)
            return
        if isinstance(message, (Result, Error)):
            self._forget(call)
        self._write(frames)

    def _break_off(self, call: Call, error: LocalProtocolError) -> None:
        """Ends an answer that has a hole now, or no end: the client must not wait for it, nor take it for whole."""
        logger.error("an answer to %s could not be sent: %s", call.id, error)
        self._write(self.session.send(failure(call.request.id, "internal", "The answer could not be sent.")))
        self._forget(call)
        call.cancel()

    def room(self) -> asyncio.Future[None]:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rooms.append(room)
        return room

    def owe(self, call: Call, size_bytes: int) -> None:
        if self.calls.get(call.request.id) is call:
            self._owe(size_bytes)

    def _owe(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self.paused and self.is_relieved:
            for call in list(self.paused):
                call.resume_if_relieved()

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes + self._window.unread_bytes >= self._limits.unread_bytes

    @property
    def is_relieved(self) -> bool:
        return (self._waiting_bytes + self._window.unread_bytes) * 2 < self._limits.unread_bytes

    # --- inside ---

    def _forget(self, call: Call) -> None:
        if self.calls.pop(call.request.id, None) is not None:
            self._owe(-call.owed_bytes)
        self._queued_bytes.pop(call.request.id, None)

    def _write(self, frames: list[bytes]) -> None:
        self._window.sent(frames)
        self._post(frames)
        if self._window.ping_due:
            self._ask()

    def _ask(self) -> None:
        """Asks what the client has read."""
        if self.is_open and not self._gone:
            ping = Ping(data=self._nonce())
            frames = self.session.send(ping)
            self._window.sent(frames)
            self._window.asked(ping.data)
            self._post(frames)
