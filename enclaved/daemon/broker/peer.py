"""Who is at the other end of a connection, as the system vouches for it, and how to hang up on them.

libzmq says of a received frame from which descriptor it came (SRCFD), and over ipc on Linux whose process is there
(Peer-Address). A number of a descriptor is used again as soon as it is free, so it is only believed together with the
socket's inode, which is not.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq


@dataclass(frozen=True)
class Peer:
    """The other end; None where the system does not say."""

    uid: int | None = None
    pid: int | None = None
    program: str | None = None
    """Its executable."""
    descriptor: int | None = None
    """Of the connection, in this process."""
    inode: int | None = None
    """Of the connection's socket."""

    def hang_up(self) -> bool:
        """End the connection, if it is the one that this was read from; libzmq then frees what waits for it.

        False when that cannot be told.
        """
        if self.descriptor is None or self.inode is None:
            return False
        try:
            # The copy stays what it is while it is looked at, whatever libzmq's thread does with the original.
            copy = os.dup(self.descriptor)
        except OSError:
            return False
        if _socket_inode(copy) != self.inode:
            os.close(copy)
            return False
        with socket.socket(fileno=copy) as connection, suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        return True


def peer_of(frame: zmq.Frame) -> Peer:
    """The sender of a frame."""
    uid, pid = _address(frame)
    descriptor = _descriptor(frame)
    return Peer(
        uid=uid,
        pid=pid,
        program=None if pid is None else _program(pid),
        descriptor=descriptor,
        inode=None if descriptor is None else _socket_inode(descriptor),
    )


def _address(frame: zmq.Frame) -> tuple[int | None, int | None]:
    """From `localhost:UID:GID:PID`, which libzmq gives for ipc on Linux."""
    with suppress(zmq.ZMQError, ValueError, IndexError):
        parts = str(frame.get("Peer-Address")).split(":")
        return int(parts[1]), int(parts[3])
    return None, None


def _program(pid: int) -> str | None:
    try:
        # The name of a file is whatever bytes somebody gave it; here it must be text.
        return os.fsencode(Path(f"/proc/{pid}/exe").readlink()).decode("utf-8", "replace")
    except OSError:
        return None


def _descriptor(frame: zmq.Frame) -> int | None:
    with suppress(zmq.ZMQError, ValueError):
        return int(frame.get(zmq.SRCFD))
    return None


def _socket_inode(descriptor: int) -> int | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None
