"""Messages to bytes and back: a length, then one MessagePack array. No sockets here; the caller brings the bytes.

A frame is an unsigned 32-bit little-endian length followed by so many bytes of payload.
"""

from __future__ import annotations

import struct

FRAME_BYTES_MAX = 64 * 1024 * 1024
"""A prompt of a million tokens as text is about 4 MB; what is larger is an attachment and travels as a descriptor."""

_LENGTH = struct.Struct("<I")


class LinkError(Exception):
    """The other end broke the rules of the link; nothing more can be read from it."""


def frame(payload: bytes) -> bytes:
    """The payload with its length before it. Raises LinkError above FRAME_BYTES_MAX."""
    if len(payload) > FRAME_BYTES_MAX:
        raise LinkError(f"a message of {len(payload)} bytes is larger than the {FRAME_BYTES_MAX} allowed")
    return _LENGTH.pack(len(payload)) + payload


class Framer:
    """Collects bytes as they come and gives back whole payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by `data`. Raises LinkError when a length is above FRAME_BYTES_MAX."""
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > FRAME_BYTES_MAX:
                raise LinkError(f"a message of {length} bytes is larger than the {FRAME_BYTES_MAX} allowed")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return payloads
