"""The ROUTER socket: routing ids to sessions, frames to calls, answers to frames.

It knows the protocol and no method: each request becomes a `Call`, which the handler answers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
from enclave.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    Cancel,
    Credit,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    Progress,
    Request,
    Welcome,
    failure,
)
from enclave.protocol.methods import check_request
from enclave.protocol.session import Role, Session
from enclave.protocol.session import State as SessionState
from enclaved.core.ids import ClientId
from enclaved.daemon.broker.call import Call, Client
from enclaved.daemon.refusal import RefusalError

FRAME_BYTES_MAX = 96 * 1024 * 1024
"""Above the largest frame a session may send (an attachment); libzmq drops the connection of a larger one."""
HANDSHAKE_MS = 5000
"""A connection that has not said by then which protocol it speaks is closed; each holds a descriptor, and libzmq ends
the process when none is left."""
HEARTBEAT_MS = 2000
PROOF_SECONDS = 1.0
LINGER_MS = 1000
"""How long the last answers may take to leave when the daemon ends."""

logger = logging.getLogger("enclaved.broker")

Handler = Callable[[Call], Awaitable[None]]


class _Connection:
    """A peer by its routing id: its session and its open calls."""

    def __init__(self, routing_id: bytes, client: Client, descriptor: int | None) -> None:
        self.routing_id = routing_id
        self.session = Session(Role.DAEMON, Limits())
        self.client = client
        self.descriptor = descriptor
        self.calls: dict[int, Call] = {}


class Broker:
    """Serves one endpoint until its task is cancelled."""

    def __init__(self, context: zmq.asyncio.Context, handle: Handler, tasks: asyncio.TaskGroup, version: str) -> None:
        self._handle = handle
        self._tasks = tasks
        self._version = version
        self._connections: dict[bytes, _Connection] = {}
        self._clients_met = 0
        self._pid = 0
        self._own_ids_met = False
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Nothing may be dropped at a mark: what a session may have under way is bounded by its credit.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, 3 * HEARTBEAT_MS)
        self._socket = socket

    def bind(self, endpoint: str, *, pid: int, uid: int | None) -> None:
        """Opens the endpoint; over ipc only this user's processes get in, where the system can tell."""
        self._pid = pid
        if uid is not None and hasattr(zmq, "IPC_FILTER_UID"):
            with suppress(zmq.ZMQError):
                self._socket.setsockopt(zmq.IPC_FILTER_UID, uid)
        self._socket.bind(endpoint)

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return sum(1 for connection in self._connections.values() if connection.session.state is SessionState.OPEN)

    async def serve(self) -> None:
        """Receives for ever."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        watching = self._tasks.create_task(self._watch(monitor))
        try:
            while True:
                frames = await self._socket.recv_multipart(copy=False)
                self._received(frames)
        finally:
            watching.cancel()
            self._socket.disable_monitor()
            monitor.close(0)

    def end_calls(self, refusal: RefusalError) -> None:
        """Tells every client what became of its calls that have not ended."""
        for connection in list(self._connections.values()):
            for call in list(connection.calls.values()):
                call.error(refusal)

    def close(self) -> None:
        """Closes the socket; what was answered still leaves, for LINGER_MS."""
        self._socket.close()

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """A disconnect names a descriptor, which may be in use again: take it as a hint, and prove it by sending."""
        while True:
            event = await recv_monitor_message(monitor)
            descriptor = event["value"]
            self._prove(descriptor)
            # The event may come before the socket itself has noticed: then the first message still finds its way.
            asyncio.get_running_loop().call_later(PROOF_SECONDS, self._prove, descriptor)

    def _prove(self, descriptor: int) -> None:
        """Sends something to whoever had this descriptor; who is gone is forgotten by that."""
        for connection in [c for c in self._connections.values() if c.descriptor == descriptor]:
            self._send(connection, Pong())

    def _received(self, frames: list[zmq.Frame]) -> None:
        routing_id = frames[0].bytes
        if len(routing_id) != 5 or routing_id[0] != 0:
            # Only ids that libzmq itself gave out: a chosen one could pretend to be another client's.
            if not self._own_ids_met:
                self._own_ids_met = True
                logger.warning("a peer with a routing id of its own choice is ignored; later ones are without a word")
            return
        connection = self._connections.get(routing_id)
        if connection is None:
            connection = self._meet(routing_id, frames[-1])
        try:
            for message in connection.session.receive([frame.buffer for frame in frames[1:]]):
                self._obey(connection, message)
        except RemoteProtocolError as error:
            self._refuse(connection, error)
        except Exception:  # a defect of ours that one client's message shows must not end the others
            logger.exception("a message of %r could not be handled", connection.client.name)
            self._forget(connection)

    def _meet(self, routing_id: bytes, frame: zmq.Frame) -> _Connection:
        self._clients_met += 1
        number = ClientId(f"c{self._clients_met}")
        connection = _Connection(routing_id, Client(number, "", _peer_pid(frame)), _descriptor(frame))
        self._connections[routing_id] = connection
        return connection

    def _obey(self, connection: _Connection, message: Message) -> None:
        match message:
            case Hello():
                known = connection.client
                connection.client = Client(known.id, message.client, known.pid, message.priority)
                welcome = Welcome(
                    version=PROTOCOL_VERSION, token=secrets.token_bytes(16), server=self._version, pid=self._pid
                )
                self._send(connection, welcome)
            case Request():
                self._call(connection, message)
            case Cancel():
                if call := connection.calls.get(message.id):
                    call.cancel()
            case Credit():
                if call := connection.calls.get(message.id):
                    call.pump()
            case Ping():
                self._send(connection, Pong())
            case Bye():
                self._forget(connection)
            case _:
                raise LocalProtocolError(f"the session let a {type(message).__name__} through")

    def _call(self, connection: _Connection, request: Request) -> None:
        method = check_request(request)
        if request.supersedes is not None:
            for older in list(connection.calls.values()):
                if older.request.supersedes == request.supersedes:
                    older.cancel()
        call = Call(
            request, method, connection.client, connection.session, lambda message: self._send(connection, message)
        )
        connection.calls[request.id] = call
        self._tasks.create_task(self._answer(connection, call))

    async def _answer(self, connection: _Connection, call: Call) -> None:
        try:
            await self._handle(call)
        except Exception:
            logger.exception("%s could not be answered", call.request.method)
            call.error(RefusalError("internal", "The daemon met a defect of its own; its log has the details."))
        # A handler that returns may have left the end to others; the call stays until its end is sent.
        if not connection.session.is_open(call.request.id):
            connection.calls.pop(call.request.id, None)

    def _refuse(self, connection: _Connection, error: RemoteProtocolError) -> None:
        with suppress(LocalProtocolError):
            self._send_frames(connection, connection.session.refuse(error))
        if error.fatal:
            logger.info("session of %r ended: %s", connection.client.name, error.code)
            self._forget(connection)

    def _send(self, connection: _Connection, message: Message) -> None:
        try:
            frames = connection.session.send(message)
        except LocalProtocolError as error:
            request_id = getattr(message, "id", None)
            if not isinstance(request_id, int) or not connection.session.is_open(request_id):
                # It has ended meanwhile: nobody is there to be told.
                return
            logger.error("a %s of %s could not be sent: %s", message.TYPE, connection.client.id, error)
            if isinstance(message, Progress):
                return
            # The answer has a hole now, or no end: the client must not wait for it, nor take it for whole.
            frames = connection.session.send(failure(request_id, "internal", "The answer could not be sent."))
            if call := connection.calls.pop(request_id, None):
                call.cancel()
        self._send_frames(connection, frames)
        request_id = getattr(message, "id", None)
        if isinstance(request_id, int) and not connection.session.is_open(request_id):
            connection.calls.pop(request_id, None)

    def _send_frames(self, connection: _Connection, frames: list[bytes]) -> None:
        # With NOBLOCK asyncio's socket sends at once; what it returns is a future, whatever its annotation says.
        awaitable = self._socket.send_multipart([connection.routing_id, *frames], zmq.NOBLOCK)  # pyright: ignore[reportUnknownMemberType]
        sent = cast("asyncio.Future[None]", awaitable)
        error = sent.exception() if sent.done() else None
        if error is None:
            return
        if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
            self._forget(connection)
        else:
            logger.error("a message could not be sent: %s", error)

    def _forget(self, connection: _Connection) -> None:
        if self._connections.get(connection.routing_id) is connection:
            del self._connections[connection.routing_id]
        for call in list(connection.calls.values()):
            call.cancel()
        connection.calls.clear()


def _peer_pid(frame: zmq.Frame) -> int | None:
    """From `localhost:UID:GID:PID`, which libzmq gives for ipc on Linux."""
    with suppress(zmq.ZMQError, ValueError, IndexError):
        return int(str(frame.get("Peer-Address")).split(":")[3])
    return None


def _descriptor(frame: zmq.Frame) -> int | None:
    with suppress(zmq.ZMQError, ValueError):
        return int(frame.get(zmq.SRCFD))
    return None
