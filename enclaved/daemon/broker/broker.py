"""The ROUTER socket: routing ids to connections, frames to calls, answers to frames.

It knows the protocol and no method: each request becomes a `Call`, which the handler answers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from enclave.protocol.errors import BUSY_SECONDS, LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    Bye,
    Cancel,
    Credit,
    Hello,
    Message,
    Ping,
    Pong,
    Request,
    Welcome,
    read_raw,
)
from enclave.protocol.methods import check_request
from enclave.sockets import LoopReader
from enclaved.core.ids import ClientId
from enclaved.core.reasons import Reason, Why
from enclaved.daemon.broker.call import Call
from enclaved.daemon.broker.client import Client, printable
from enclaved.daemon.broker.connection import Connection
from enclaved.daemon.broker.peer import Peer, peer_of
from enclaved.daemon.broker.reasons import refusal_of
from enclaved.daemon.broker.settings import BrokerSettings
from enclaved.daemon.refusal import RefusalError

HANDSHAKE_MS = 5000
"""A connection that has not said by then which protocol it speaks is closed; each holds a descriptor, and libzmq ends
the process when none is left."""
HEARTBEATS = 4
"""In the time after which a silent peer counts as gone. libzmq's own thread answers, however busy the client is."""
PROOF_SECONDS = 1.0
LINGER_MS = 1000
"""How long the last answers may take to leave when the daemon ends."""
REFUSED_MAX = 16
"""Sessions that one connection may spoil. A program that is being written spoils a few; who goes on for ever only
costs."""
CROSSED_MAX = 1024
"""Messages of a session that may come after its end: what was under way when it ended."""
FRAMES_HUNG_UP_ON = 10_000
"""In one message: it holds up all others while it is read, and nobody sends it by mistake."""
GONE_KEPT = 1024
"""Connections that have ended and whose last messages may still come."""
LOG_SECONDS = 60.0
"""How often it is logged, at most, that peers break the rules: they may do so a hundred thousand times a minute."""
FEATURES: frozenset[str] = frozenset()
"""What a client may ask for in its hello beyond this version of the protocol."""

_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

logger = logging.getLogger("enclaved.broker")

Handler = Callable[[Call], Coroutine[Any, Any, None] | None]


class Broker:
    """Serves one endpoint from `bind` to `close`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        handle: Handler,
        tasks: asyncio.TaskGroup,
        version: str,
        settings: BrokerSettings | None = None,
    ) -> None:
        self._handle = handle
        self._tasks = tasks
        self._version = version
        self._settings = settings or BrokerSettings()
        self._connections: dict[bytes, Connection] = {}
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._clients_met = 0
        self._pid = 0
        self._uid: int | None = None
        self._misbehaved = 0
        """Since it was logged last."""
        self._logged_at: float | None = None
        self._loop = asyncio.get_running_loop()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Nothing may be dropped at a mark: what a client may leave unread is bounded in bytes, by its connection.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._settings.frame_bytes_max)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        silent_ms = int(self._settings.silent_seconds_max * 1000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, silent_ms // HEARTBEATS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silent_ms)
        self._socket = socket
        self._readers: list[LoopReader] = []
        self._reader: LoopReader
        self._unsent: dict[bytes, list[list[bytes]]] = {}
        """Messages by routing id, until this turn of the loop ends."""
        self._will_flush = False
        self._frames_max = 2 + self._settings.attachments_max
        """Of a message that may be one: a header, a body and attachments."""
        self._monitor: zmq.Socket[bytes]

    def bind(self, endpoint: str, *, pid: int, uid: int | None) -> None:
        """Opens the endpoint and serves it; over ipc only this user's processes get in, where the system can tell."""
        self._pid = pid
        self._uid = uid
        if uid is not None and hasattr(zmq, "IPC_FILTER_UID"):
            with suppress(zmq.ZMQError):
                self._socket.setsockopt(zmq.IPC_FILTER_UID, uid)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.bind(endpoint)
        self._reader = LoopReader(self._socket, self._take)
        self._readers = [self._reader, LoopReader(self._monitor, self._take_news)]

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return sum(1 for connection in self._connections.values() if connection.is_open)

    def end_calls(self, refusal: RefusalError) -> None:
        """Tells every client what became of its calls that have not ended."""
        for connection in list(self._connections.values()):
            for call in list(connection.calls.values()):
                call.error(refusal)

    def close(self) -> None:
        """Closes the socket; what was answered still leaves, for LINGER_MS."""
        if self._readers:
            self._flush()
            for reader in self._readers:
                reader.close()
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._readers = []
        self._socket.close()

    # --- receiving ---

    def _take(self) -> None:
        routing_id = self._socket.recv(zmq.NOBLOCK)
        self._will_flush = True
        try:
            self._take_from(routing_id)
        finally:
            self._flush()

    def _take_from(self, routing_id: bytes) -> None:
        connection = self._connections.get(routing_id)
        if connection is None:
            first = self._socket.recv(copy=False)
            frames = [first.bytes]
            count = self._take_rest(frames)
            if routing_id in self._gone or (connection := self._meet(routing_id, peer_of(first))) is None:
                return
        else:
            frames: list[bytes] = []
            count = self._take_rest(frames)
        self._received(connection, frames)
        if count > FRAMES_HUNG_UP_ON:
            self._hang_up(connection, f"its message has {count} frames")

    def _take_rest(self, frames: list[bytes]) -> int:
        """Adds what is left of a message; gives how many frames that were. Of too many, only enough to show it are
        kept."""
        count = 0
        while self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv()
            count += 1
            if len(frames) <= self._frames_max:
                frames.append(frame)
        return count

    def _take_news(self) -> None:
        """A disconnect names a descriptor, which may be in use again: take it as a hint, and prove it by sending."""
        event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
        descriptor = event["value"]
        self._prove(descriptor)
        # The event may come before the socket itself has noticed: then the first message still finds its way.
        self._loop.call_later(PROOF_SECONDS, self._prove, descriptor)

    def _prove(self, descriptor: int) -> None:
        """Sends something to whoever had this descriptor; who is gone is forgotten by that."""
        for connection in [c for c in self._connections.values() if c.peer.descriptor == descriptor]:
            with suppress(LocalProtocolError):
                connection.say(Pong())

    def _meet(self, routing_id: bytes, peer: Peer) -> Connection | None:
        """A connection for a peer's first message; None when it is not to be spoken with."""
        if not _is_automatic(routing_id):
            self._turn_away(peer, "its routing id is of its own choice")
            return None
        if self._uid is not None and peer.uid is not None and peer.uid != self._uid:
            self._turn_away(peer, f"it is of user {peer.uid}")
            return None
        connection: Connection = Connection(
            peer,
            self._next_client_id(),
            self._settings.limits,
            lambda frames: self._send(routing_id, frames),
            lambda: secrets.token_bytes(8),
            lambda call: self._loop.call_soon(self._begin, connection, call),
        )
        self._connections[routing_id] = connection
        return connection

    def _next_client_id(self) -> ClientId:
        self._clients_met += 1
        return ClientId(f"c{self._clients_met}")

    def _received(self, connection: Connection, frames: list[bytes]) -> None:
        try:
            for message in connection.session.receive(frames):
                self._obey(connection, message)
        except RemoteProtocolError as error:
            self._refuse(connection, frames, error)
        except Exception:  # a defect of ours that one client's message shows must not end the others
            logger.exception("a message of %s could not be handled", connection.client)
            connection.begin(self._next_client_id())
        if connection.is_burst:
            self._hang_up(connection, "it asks for more and reads nothing")

    def _obey(self, connection: Connection, message: Message) -> None:
        match message:
            case Hello():
                self._welcome(connection, message)
            case Request():
                self._call(connection, message)
            case Cancel():
                if call := connection.calls.get(message.id):
                    call.cancel()
            case Credit():
                if call := connection.calls.get(message.id):
                    call.pump()
            case Ping():
                connection.say(Pong(data=message.data))
            case Pong():
                connection.answered(message)
            case Bye():
                connection.begin(self._next_client_id())
            case _:
                raise LocalProtocolError(f"the session let a {type(message).__name__} through")

    def _welcome(self, connection: Connection, hello: Hello) -> None:
        sessions = self.sessions
        if sessions >= self._settings.sessions_max:
            raise RemoteProtocolError(
                f"{sessions} sessions are open already, as many as may",
                code="busy",
                numbers={"sessions": sessions, "sessions_max": self._settings.sessions_max},
                retry_after=BUSY_SECONDS,
            )
        known = connection.client
        connection.client = Client(known.id, printable(hello.client), known.pid, known.program, hello.priority)
        version = connection.session.version
        assert version is not None, "the session let a hello through whose version is not spoken"
        connection.crossed = 0
        connection.welcome(
            Welcome(
                version=version,
                token=secrets.token_bytes(16),
                server=self._version,
                pid=self._pid,
                features=tuple(sorted(FEATURES.intersection(hello.features))),
                limits=self._settings.limits,
            )
        )

    def _call(self, connection: Connection, request: Request) -> None:
        method = check_request(request)
        if request.supersedes is not None:
            for older in list(connection.calls.values()):
                if older.request.supersedes == request.supersedes:
                    older.cancel()
        connection.admit(request)
        call = Call(request, method, connection.client, connection)
        if connection.take_on(call):
            self._begin(connection, call)

    def _begin(self, connection: Connection, call: Call) -> None:
        """Has the call answered."""
        try:
            if call.wants_cancel:
                call.error(refusal_of(Reason(Why.CANCELLED)))
            elif not call.has_ended and (work := self._handle(call)) is not None:
                self._tasks.create_task(self._finish(call, work))
        except Exception:
            logger.exception("%s could not be answered", call.request.method)
            call.error(_own_defect())
        connection.start_deferred()

    async def _finish(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            logger.exception("%s could not be answered", call.request.method)
            call.error(_own_defect())

    def _refuse(self, connection: Connection, frames: list[bytes], error: RemoteProtocolError) -> None:
        if connection.is_over and _is_of_a_session(frames):
            # It was under way when the session ended, and has been answered by that.
            connection.crossed += 1
            if connection.crossed > CROSSED_MAX:
                self._hang_up(connection, "it goes on after its session has ended")
            else:
                connection.begin(self._next_client_id(), is_over=True)
            return
        connection.refuse(error)
        if not error.fatal:
            return
        if error.code != "busy":
            self._log_misbehaviour(f"a session of {connection.client} ended: {error.code}")
            connection.refused += 1
        if connection.refused >= REFUSED_MAX:
            self._hang_up(connection, f"{REFUSED_MAX} of its sessions broke the rules")
        else:
            connection.begin(self._next_client_id(), is_over=True)

    # --- peers that are not to be spoken with ---

    def _hang_up(self, connection: Connection, why: str) -> None:
        self._flush()  # the last word it gets
        for routing_id, known in self._connections.items():
            if known is connection:
                self._turn_away(connection.peer, why, str(connection.client))
                self._forget(routing_id)
                return

    def _turn_away(self, peer: Peer, why: str, who: str | None = None) -> None:
        """Ends a connection. What still comes of it is dropped, also where the system cannot end it."""
        self._log_misbehaviour(f"hangs up on {who or f'pid {peer.pid}'}: {why}")
        peer.hang_up()

    def _log_misbehaviour(self, what: str) -> None:
        now = self._loop.time()
        if self._logged_at is not None and now - self._logged_at < LOG_SECONDS:
            self._misbehaved += 1
            return
        unsaid, self._misbehaved, self._logged_at = self._misbehaved, 0, now
        logger.warning("%s%s", what, f" ({unsaid} more of this kind since the last such line)" if unsaid else "")

    # --- sending ---

    def _send(self, routing_id: bytes, frames: list[bytes]) -> None:
        """Sends a message with the others of this turn of the loop, so that a client wakes once for them and not for
        each: a worker's step has something for every stream."""
        self._unsent.setdefault(routing_id, []).append(frames)
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._will_flush = False
        unsent, self._unsent = self._unsent, {}
        send = self._socket.send
        for routing_id, messages in unsent.items():
            try:
                for frames in messages:
                    send(routing_id, _MORE)
                    for frame in frames[:-1]:
                        send(frame, _MORE)
                    send(frames[-1], _LAST)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    logger.error("a message could not be sent: %s", error)
                # Without this message the peer would wait for what never comes.
                self._forget(routing_id)
        if unsent:
            self._reader.sent()

    def _forget(self, routing_id: bytes) -> None:
        connection = self._connections.pop(routing_id, None)
        if connection is not None:
            self._gone[routing_id] = None
            while len(self._gone) > GONE_KEPT:
                self._gone.popitem(last=False)
            connection.leave()


def _is_automatic(routing_id: bytes) -> bool:
    """Whether the id has the form of those that ZeroMQ gives out itself: a zero byte and a counter of 32 bits."""
    return len(routing_id) == 5 and routing_id[0] == 0


def _is_of_a_session(frames: list[bytes]) -> bool:
    """Whether these are a message, and none that begins a session."""
    try:
        return read_raw(frames).type != Hello.TYPE
    except RemoteProtocolError:
        return False


def _own_defect() -> RefusalError:
    return RefusalError("internal", "The daemon met a defect of its own; its log has the details.")
