"""Reads forward through a GGUF file's header: numbers and strings, each checked before it is taken.

The header reader steps through the file with it. It knows where the file should end and never believes a length that
goes beyond, keeps a chunk in memory, and skips what nobody wants without making Python objects of it.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from enclaved.plugin.model import CutOffError, HeaderError

HEADER_BYTES_MAX = 64 * 1024 * 1024
"""Metadata and tensor list at most; the largest vocabularies published so far need about 20 MiB."""
STRING_BYTES_MAX = 4 * 1024 * 1024
STRING_ITEMS_MAX = 4_000_000
"""Strings in all arrays together: each costs a step of a loop, and the loop has to end within a second."""
CHUNK_BYTES = 1024 * 1024

SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""How each number type of the metadata lies in the file (`enum gguf_type`)."""


class Cursor:
    """Reads forward through the header, a chunk at a time."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._size = size_bytes
        self._buffer = b""
        self._at = 0
        self._base = 0
        self._strings_left = STRING_ITEMS_MAX
        file.seek(0)

    @property
    def offset(self) -> int:
        return self._base + self._at

    def _need(self, count: int, what: str) -> None:
        """Makes `count` bytes available in the buffer."""
        if len(self._buffer) - self._at >= count:
            return
        self._check_room(count, what)
        rest = self._buffer[self._at :]
        parts = [rest]
        missing = max(count - len(rest), min(CHUNK_BYTES, self._size - self.offset - len(rest)))
        while missing > 0:
            part = self._file.read(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self._base += self._at
        self._at = 0
        self._buffer = b"".join(parts)
        if len(self._buffer) < count:
            raise CutOffError(f"is cut off: it ends within {what}, after {self._base + len(self._buffer):,} bytes")

    def _check_room(self, count: int, what: str) -> None:
        end = self.offset + count
        if end > self._size:
            raise CutOffError(f"is cut off: {what} should end at byte {end:,}, the file has {self._size:,}")
        if end > HEADER_BYTES_MAX:
            raise HeaderError(f"has a header of more than {HEADER_BYTES_MAX // 2**20} MiB, which no real model needs")

    def take(self, count: int, what: str) -> bytes:
        self._need(count, what)
        start = self._at
        self._at += count
        return self._buffer[start : self._at]

    def unpack(self, shape: struct.Struct, what: str) -> int | float | bool:
        self._need(shape.size, what)
        (value,) = shape.unpack_from(self._buffer, self._at)
        self._at += shape.size
        return value

    def u32(self, what: str) -> int:
        return int(self.unpack(SCALARS[4], what))

    def u64(self, what: str) -> int:
        return int(self.unpack(SCALARS[10], what))

    def string(self, bytes_max: int, what: str) -> bytes:
        length = self.u64(what)
        if length > bytes_max:
            raise HeaderError(f"is damaged: {what} claims {length:,} bytes, {bytes_max:,} are the most")
        return self.take(length, what)

    def skip(self, count: int, what: str) -> None:
        self._check_room(count, what)
        if self._at + count <= len(self._buffer):
            self._at += count
            return
        self._base += self._at + count
        self._at = 0
        self._buffer = b""
        self._file.seek(self._base)

    def skip_strings(self, count: int, what: str, markers: tuple[tuple[bytes, ...], ...] = ()) -> set[int]:
        """Skips an array of strings; returns the numbers of the families of which a marker is among them."""
        if count > self._strings_left:
            raise HeaderError(f"has more than {STRING_ITEMS_MAX:,} strings in its arrays, which no real model needs")
        self._strings_left -= count
        found: set[int] = set()
        left = count
        length_at = SCALARS[10].unpack_from
        while left:
            self._need(8, what)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            start = at
            while left and at <= last:
                end = at + 8 + length_at(buffer, at)[0]
                if end > last + 8:
                    break
                at = end
                left -= 1
            self._at = at
            found.update(
                number for number, family in enumerate(markers) if any(buffer.find(m, start, at) >= 0 for m in family)
            )
            if left and at == start:
                found.update(self._one_string(what, markers))
                left -= 1
        return found

    def _one_string(self, what: str, markers: tuple[tuple[bytes, ...], ...]) -> set[int]:
        """Reads the string that reaches beyond the buffer."""
        text = self.string(STRING_BYTES_MAX, f"a string in {what}")
        whole = struct.pack("<Q", len(text)) + text
        return {number for number, family in enumerate(markers) if whole in family}
