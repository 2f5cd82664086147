"""A ZeroMQ socket in asyncio's loop, without a future for each message.

The daemon and the asynchronous client wait for their sockets through this. `zmq.asyncio` makes a future and a callback
of every message, which costs more than everything else that is done with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmq

_POLLIN = int(zmq.POLLIN)  # an enum's own & takes longer than asking the socket
MESSAGES_A_TURN = 256
"""Taken in before the other tasks of the loop get their turn."""


class LoopReader:
    """Calls `take` in the loop for each message that has come. It reads one message with zmq.NOBLOCK.

    libzmq's descriptor is edge-triggered, and also sending uses the edge up. So whoever sends on the socket calls
    `sent` afterwards.
    """

    def __init__(
        self, socket: zmq.Socket[Any], take: Callable[[], object], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._socket = socket
        self._take = take
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._closed = False
        self._waiting = False
        """Whether the loop will look at the socket in its next turn anyway."""
        self._reading = False
        """Whether messages are being taken, until none is left."""
        self._sent_meanwhile = False
        self._loop.add_reader(self._descriptor, self._readable)
        self.sent()  # for what came before

    def sent(self) -> None:
        """Something was sent: look whether something has come."""
        self._sent_meanwhile = self._reading
        if not (self._waiting or self._reading or self._closed) and self._has_come():
            self._again()

    def _again(self) -> None:
        self._waiting = True
        self._loop.call_soon(self._turn)

    def _has_come(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def close(self) -> None:
        """Stop reading; the socket stays open. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)

    def _turn(self) -> None:
        self._waiting = False
        if not self._closed and self._has_come():
            self._readable()

    def _readable(self) -> None:
        self._reading, self._sent_meanwhile = True, False
        try:
            for count in range(MESSAGES_A_TURN):
                # The first look is the loop's own, and may have been at a change of another kind.
                if self._closed or (count == 1 and not self._has_come()):
                    return
                self._take()
        except zmq.Again:
            if not (self._sent_meanwhile and self._has_come()):
                return
        finally:
            self._reading = False
        self._again()
