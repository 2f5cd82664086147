"""The daemon's end of the link to one child: never blocks, and can send file descriptors.

asyncio's own transports drop what travels beside the bytes, so this watches the socket itself.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from enclaved.link.framing import Framer, LinkError
from enclaved.link.messages import FromChild, ToChild, decode_from_child, encode

_RECEIVE_BYTES = 256 * 1024
_DRAINED_READS_MAX = 64
"""What a dead child left in its socket fits in a few reads; whoever else holds the other end may fill it for ever."""

logger = logging.getLogger("enclaved.supervisor")


class Channel:
    """Sends messages in order, and hands each received one to `on_message` in the loop's thread.

    `on_end` is called once: when the child's end is closed, or broke the rules (then with the reason).
    """

    def __init__(
        self,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[FromChild], None],
        on_end: Callable[[LinkError | None], None],
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._framer = Framer()
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._open = True
        self._deaf = False
        """Whether the child's end takes nothing any more; what it said before may still be read."""
        loop.add_reader(connection, self._readable)

    def send(self, message: ToChild, descriptors: Sequence[int] = ()) -> None:
        """Queues a message. Descriptors are sent as they are now, so the caller may close them when this returns.

        On a channel that has ended nothing happens: the end is told by `on_end`. Raises LinkError for a message that
        cannot be written, OSError when there are no descriptors left; nothing is sent then.
        """
        if not self._open or self._deaf:
            return
        data = memoryview(encode(message))
        self._outbox.append((data, _duplicates(descriptors)))
        if len(self._outbox) == 1:
            self._writable()

    def drain(self) -> None:
        """Hands over everything that has arrived already."""
        for _ in range(_DRAINED_READS_MAX):
            if not self._open or not self._read_once():
                return

    def close(self) -> None:
        """Closes this end; the child ends by that. Closing twice is harmless."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        self._forget_outbox()

    def _forget_outbox(self) -> None:
        for _, descriptors in self._outbox:
            _close_all(descriptors)
        self._outbox.clear()

    def _writable(self) -> None:
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                if descriptors:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
                    sent = self._connection.sendmsg([data], [rights])
                else:
                    sent = self._connection.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._connection, self._writable)
                return
            except OSError:
                # The reader comes to the end by itself, behind the child's last words.
                self._deaf = True
                self._forget_outbox()
                break
            _close_all(descriptors)
            self._outbox[0] = (data[sent:], ())
            if sent == len(data):
                self._outbox.popleft()
        self._loop.remove_writer(self._connection)

    def _readable(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Whether there was something to read."""
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._ended(None)
            return False
        try:
            for payload in self._framer.feed(data):
                self._on_message(decode_from_child(payload))
        except LinkError as error:
            self._ended(error)
        except Exception:
            # What was read with it is lost, and whoever waits for it would wait for ever.
            logger.exception("a child's message could not be handled")
            self._ended(LinkError("a message could not be handled"))
        return True

    def _ended(self, error: LinkError | None) -> None:
        if self._open:
            self.close()
            self._on_end(error)


def _duplicates(descriptors: Sequence[int]) -> Sequence[int]:
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3))  # noqa: PERF401 - to close what there is
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
