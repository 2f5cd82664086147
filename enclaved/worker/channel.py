"""The child's end of the link: blocking, one reader thread, any number of senders.

The reader owns receiving; whatever the engine is doing, control messages are read at once. The end of the channel is
the end of the child: the daemon is gone, and nobody else wants the answers.
"""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from enclaved.link.framing import Framer
from enclaved.link.messages import FromChild, Ping, Pong, ToChild, decode_to_child, descriptors_of, encode, joined

_RECEIVE_BYTES = 256 * 1024
_DESCRIPTORS_MAX = 64
"""In one receive; Linux allows 253."""

Handler = Callable[[ToChild, list[int]], None]
"""Called in the reader thread with each message and the descriptors that came with it, which are then the handler's."""


class Channel:
    """Sends and receives messages over the inherited socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: FromChild) -> None:
        """Sends a message whole. When the daemon is gone the process ends here."""
        self.send_all([message])

    def send_all(self, messages: Sequence[FromChild]) -> None:
        """Sends messages whole and in one go."""
        data = b"".join(map(encode, joined(messages)))
        try:
            with self._sending:
                self._connection.sendall(data)
        except OSError:
            os._exit(0)

    def receive_forever(self, handle: Handler) -> None:
        """Reads until the daemon goes, then ends the process. A ping is answered right here.

        What cannot be read or handled ends the process too: a child that no longer listens would keep its model.
        """
        try:
            self._receive(handle)
        except BaseException:  # noqa: BLE001 - whatever it is, the process must not stay
            traceback.print_exc()
            os._exit(1)

    def _receive(self, handle: Handler) -> None:
        framer = Framer()
        descriptors: deque[int] = deque()
        while True:
            try:
                data, received, _flags, _address = socket.recv_fds(self._connection, _RECEIVE_BYTES, _DESCRIPTORS_MAX)
            except OSError:
                os._exit(0)
            if not data:
                os._exit(0)
            descriptors.extend(received)
            for payload in framer.feed(data):
                message = decode_to_child(payload)
                if isinstance(message, Ping):
                    self.send(Pong(message.number))
                    continue
                handle(message, [descriptors.popleft() for _ in range(descriptors_of(message))])
