"""A bridge's machine and the daemon's side of its session, against each other: no pipe, no socket, no process."""

from __future__ import annotations

import json
from typing import Any

from enclave.protocol import Chunk, Hello, Message, Ping, Pong, Role, Session, Welcome
from enclave.protocol.packing import pack
from enclave_cli.bridging import WRITE_BYTES_MAX, Bridge

OWN = Hello(version=1, version_min=1, client="enclave-bridge", program="test/1")
WELCOME = Welcome(version=1, token=b"0123456789abcdef", server="0.1.0", pid=4711)

GENERATE = {"type": "request", "id": 1, "method": "generate", "model": "m", "body": {"prompt": "x"}}


def chunk_body(count: int = 1) -> bytes:
    return pack({"text": "é", "tokens": [7]}) * count


class Pair:
    """A bridge, a daemon's session on its other side, and what both have said."""

    def __init__(self, hello: Hello = OWN, welcomes: bool = True) -> None:
        self.bridge = Bridge(hello)
        self.welcomes = welcomes
        self.daemon: Session | None = None
        self.heard: list[Message] = []
        """By the daemon, in its present session."""
        self.lines: list[dict[str, Any]] = []
        """What was written."""
        self._unread = b""

    def say(self, *lines: object, raw: bytes = b"") -> list[dict[str, Any]]:
        """Feed lines; gives what is written because of them."""
        self.bridge.feed(raw + b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        return self.move()

    def tell(self, message: Message) -> list[dict[str, Any]]:
        """Send a daemon's message; gives what is written because of it."""
        assert self.daemon is not None
        self.bridge.receive(self.daemon.send(message))
        return self.move()

    def chunk(self, request_id: int, count: int = 1) -> list[dict[str, Any]]:
        assert self.daemon is not None
        seq = self.daemon.next_seq(request_id)
        return self.tell(Chunk(id=request_id, seq=seq, count=count, body=chunk_body(count)))

    def move(self, write: bool = True) -> list[dict[str, Any]]:
        """Everything that can go on does, as in the loop."""
        before = len(self.lines)
        while True:
            if self.bridge.wants_session:
                self.daemon, self.heard = Session(Role.DAEMON), []
                self.bridge.begin()
            elif self.bridge.outbox:
                self._deliver(self.bridge.outbox.popleft())
            elif self.bridge.waiting_bytes and write:
                self.write(WRITE_BYTES_MAX)
            else:
                return self.lines[before:]

    def write(self, count: int) -> None:
        """Standard output takes so many bytes."""
        data = self.bridge.output()[:count]
        self.bridge.written(len(data))
        *ended, self._unread = (self._unread + data).split(b"\n")
        self.lines.extend(json.loads(line) for line in ended)

    def _deliver(self, frames: list[bytes]) -> None:
        assert self.daemon is not None
        for message in self.daemon.receive(frames):
            self.heard.append(message)
            if isinstance(message, Hello) and self.welcomes:
                self.bridge.receive(self.daemon.send(WELCOME))
            elif isinstance(message, Ping):
                self.bridge.receive(self.daemon.send(Pong(data=message.data)))

    def last(self) -> Message:
        return self.heard[-1]
