"""How both clients set up their connection: the address, the socket's options, and what counts as lost.

They differ in how they wait, not in any of this. The address may mean starting a daemon (discovery.py).
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import zmq

from enclave.calls import priority_of
from enclave.discovery import running, start_daemon
from enclave.exceptions import ConnectionLostError, DaemonUnavailableError
from enclave.paths import places, read_state
from enclave.protocol.messages import Priority

CONNECT_SECONDS = 10.0
"""For finding or starting the daemon, and its welcome."""

CONNECT_ATTEMPTS = 2
"""A daemon may end between being found and being greeted; one that drops everyone is no daemon."""

RECONNECT_NEVER_MS = 2**31 - 1
"""After a lost connection the session is gone, so libzmq must not make a new one behind our back. Its own -1 for
"never" drops what has arrived and was not read yet (seen with libzmq 4.3.5), a long interval does not."""

HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 30_000
"""Finds a daemon that is stopped or a link that is cut; answered by libzmq's own thread, however busy Python is."""

MONITORED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""Each of these means that nothing more will come."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What a client was made with."""

    name: str
    priority: Priority
    start: bool
    endpoint: str | None
    timeout: float

    @classmethod
    def make(
        cls, name: str | None, priority: str | Priority, start: bool, endpoint: str | None, timeout: float
    ) -> ClientOptions:
        """The options with their defaults; raises BadRequestError for an unknown priority."""
        return cls(name or Path(sys.argv[0]).name or "python", priority_of(priority), start, endpoint, timeout)


def program() -> str:
    """This library and its version, for the daemon's log."""
    try:
        return f"enclaved-client/{metadata.version('enclaved-client')}"
    except metadata.PackageNotFoundError:
        return "enclaved-client"


def find_address(options: ClientOptions, timeout: float) -> str:
    """The address to connect to, after starting a daemon if there is none and it is wished. Blocks.

    Raises DaemonUnavailableError, or the error that a starting daemon reports.
    """
    if options.endpoint is not None:
        return options.endpoint
    where = places(os.environ)
    found = running(where)
    if found is None and options.start:
        found = start_daemon(where, os.environ, timeout)
    if found is None:
        raise DaemonUnavailableError(
            f"no daemon is running for {where.home}", hint="Start `enclaved`, or let the client start it (start=True)."
        )
    return found.address


def set_options(socket: zmq.Socket[Any]) -> None:
    """The options of a client's DEALER, before it connects."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_NEVER_MS)
    # What may be under way is bounded by credit and by the open requests, both far below any mark.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def is_lost(monitor_frames: list[bytes]) -> bool:
    """Whether the monitor's message (zmq_socket_monitor(3): a 16 bit event and a value) says that all is over."""
    # pyzmq's own reader of it imports asyncio, a third of this client's import time.
    (event,) = struct.unpack_from("=H", monitor_frames[0])
    return bool(event & MONITORED)


def lost_error() -> ConnectionLostError:
    """What open calls end with."""
    return ConnectionLostError("the connection to the daemon was lost")


def no_welcome(address: str, timeout: float) -> DaemonUnavailableError:
    """What connecting ends with when somebody listens at the address, and says nothing."""
    where = places(os.environ)
    state = read_state(where)
    if state is None or state.endpoint != address:
        return DaemonUnavailableError(
            f"the daemon at {address} does not answer, not within {timeout:g} s",
            hint="Is it a daemon of Enclave, and not stopped?",
        )
    return DaemonUnavailableError(
        f"the daemon (pid {state.pid}) does not answer, not within {timeout:g} s",
        hint=f"End it with `kill {state.pid}`, or `kill -KILL {state.pid}` if that does not help; "
        f"its log is {where.log_file}.",
    )


def no_answer(address: str) -> DaemonUnavailableError:
    """What connecting ends with when the connection does not hold."""
    return DaemonUnavailableError(f"nothing answers at {address}")
