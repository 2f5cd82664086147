"""Chunks of one request that wait for credit, joined into as few messages as possible.

The daemon's broker holds one ChunkJoiner per streaming request: it puts in what the worker sends and takes out a
message whenever the session has credit. Bodies are sequences of MessagePack values, so joining is concatenation and
a slow reader costs the bytes it is owed, not a message each. Nothing here parses a body.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from enclave.protocol.messages import AttachmentInfo, Chunk

JOINED_BYTES_MAX = 256 * 1024
"""A joined body stays below this, so that no single message grows with the reader's slowness."""


@dataclass(slots=True)
class _Waiting:
    body: bytearray
    count: int
    attachments: tuple[AttachmentInfo, ...] = ()
    frames: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def size_bytes(self) -> int:
        return len(self.body) + sum(len(frame) for frame in self.frames)


class ChunkJoiner:
    """A queue of chunks of one request; order is kept, chunks with attachments stay alone."""

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._seq = 0

    def __repr__(self) -> str:
        return f"<ChunkJoiner of {self.request_id}: {len(self._waiting)} waiting, {self._waiting_bytes} bytes>"

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def put(
        self,
        body: bytes,
        count: int = 1,
        attachments: tuple[AttachmentInfo, ...] = (),
        frames: tuple[bytes, ...] = (),
    ) -> None:
        """Append `count` values; they join the last ones that wait unless either has attachments."""
        self._waiting_bytes += len(body) + sum(len(frame) for frame in frames)
        last = self._waiting[-1] if self._waiting else None
        if last is not None and not frames and not last.frames and len(last.body) + len(body) <= JOINED_BYTES_MAX:
            last.body += body
            last.count += count
        else:
            self._waiting.append(_Waiting(bytearray(body), count, attachments, frames))

    def take(self) -> Chunk | None:
        """The next message to send, which costs one credit; None when nothing waits."""
        if not self._waiting:
            return None
        waiting = self._waiting.popleft()
        self._waiting_bytes -= waiting.size_bytes
        chunk = Chunk(
            id=self.request_id,
            seq=self._seq,
            count=waiting.count,
            attachments=waiting.attachments,
            body=bytes(waiting.body),
            frames=waiting.frames,
        )
        self._seq += waiting.count
        return chunk

    def passed(self, count: int) -> None:
        """Note that `count` values were sent by another way, when nothing waited before them."""
        assert not self._waiting, "what waits goes first"
        self._seq += count

    def drop(self) -> None:
        """Forget what waits: nobody wants it any more. The gap does not count, since nothing is sent after it."""
        self._waiting.clear()
        self._waiting_bytes = 0
