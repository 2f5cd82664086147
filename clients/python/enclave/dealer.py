"""A client's DEALER socket: its options, its end, and what its monitor tells."""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import zmq

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


_INHERITED: list[Dealer] = []
"""Of the process that this one was forked from: nothing of them may be closed here."""


class Closable(Protocol):
    """What can be closed, more than once."""

    def close(self) -> object: ...


class Dealer:
    """A DEALER and its monitor, in a context of their own.

    They end with the connection that they are for, at the latest: a context that the garbage collector finds together
    with its open sockets would wait for them for ever.
    """

    context: zmq.Context[zmq.Socket[bytes]]
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]

    def __init__(self, owner: object) -> None:
        """Opens nothing yet, so that there is something to close when `open` is interrupted."""
        self.besides: Sequence[Closable] = ()
        """Closed together with them."""
        self._process = os.getpid()
        weakref.finalize(owner, self._end).atexit = False

    def open(self) -> None:
        """Make the sockets; raises ZMQError."""
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        set_options(self.socket)
        self.monitor = self.socket.get_monitor_socket(MONITORED)

    def _end(self) -> None:
        """Close, when the owner is gone: nobody would do it once more."""
        try:
            self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what there is; once more when that was interrupted."""
        if self._process != os.getpid():
            _INHERITED.append(self)
            return
        if hasattr(self, "socket") and not self.socket.closed:
            # Before the other end is closed: with nobody to take it, libzmq waits for ever with an event in its hands.
            self.socket.disable_monitor()
        if hasattr(self, "monitor"):
            self.monitor.close(0)
        if hasattr(self, "socket"):
            self.socket.close(0)
        if hasattr(self, "context"):
            self.context.term()
        for other in self.besides:
            other.close()


def set_options(socket: zmq.Socket[Any]) -> None:
    """The options of a client's DEALER, before it connects."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_NEVER_MS)
    # What may be under way is bounded by credit and by the open requests, both far below any mark.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def send(socket: zmq.Socket[Any], frames: list[bytes]) -> None:
    """A message's frames; what `send_multipart` does, without looking at each frame's type and making a list of it."""
    *others, last = frames
    for frame in others:
        socket.send(frame, zmq.SNDMORE)
    socket.send(last)


def is_lost(monitor_frames: list[bytes]) -> bool:
    """Whether the monitor's message (zmq_socket_monitor(3): a 16 bit event and a value) says that all is over."""
    # pyzmq's own reader of it imports asyncio, a third of this client's import time.
    (event,) = struct.unpack_from("=H", monitor_frames[0])
    return bool(event & MONITORED)
