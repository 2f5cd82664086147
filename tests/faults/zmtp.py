"""A peer that speaks ZMTP by hand (RFC 23, version 3.0, mechanism NULL): what no library would let a program do."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

SECONDS = 60.0
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 0x01, 0x02, 0x04


class RawPeer:
    """A connection to a daemon's socket, as a DEALER with this routing id."""

    def __init__(self, endpoint: str, routing_id: bytes = b"") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(endpoint.removeprefix("ipc://"))
        self._socket.sendall(_GREETING)
        self._read(len(_GREETING))
        ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", routing_id)
        self._socket.sendall(struct.pack(">BQ", _COMMAND | _LONG, len(ready)) + ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, *frames: bytes, unfinished: bool = False) -> None:
        """Sends a message; or an unfinished one, after whose frames another has to come."""
        for number, frame in enumerate(frames):
            more = _MORE if unfinished or number < len(frames) - 1 else 0
            self._socket.sendall(struct.pack(">BQ", more | _LONG, len(frame)) + frame)

    def send_for_ever(self, *frames: bytes) -> None:
        """Sends a message again and again and reads nothing, until the connection ends: then OSError is raised."""
        while True:
            self.send(*frames)

    def begin_frame(self, announced_bytes: int, sent: bytes) -> None:
        """Announces a frame of so many bytes and sends the beginning of it."""
        self._socket.sendall(struct.pack(">BQ", _MORE | _LONG, announced_bytes) + sent)

    def hung_up_on(self) -> bytes:
        """Waits for the connection's end; gives what came until then."""
        received = b""
        while True:
            try:
                piece = self._socket.recv(65_536)
            except ConnectionResetError:
                return received
            if not piece:
                return received
            received += piece

    def _read(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            piece = self._socket.recv(count - len(received))
            if not piece:
                raise ConnectionError("the connection ended")
            received += piece
        return received


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
