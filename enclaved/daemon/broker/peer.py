"""Who is at the other end of a connection, as the system vouches for it, and how to hang up on them.

libzmq says of a received frame from which descriptor it came (SRCFD), and over ipc on Linux whose process is there
(Peer-Address). A number of a descriptor is used again as soon as it is free, so it is only believed together with the
socket's inode, which is not.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

_CREDENTIALS = struct.Struct("3i")
"""unix(7): pid, uid and gid."""


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
        connection = _copy(self.descriptor)
        if connection is None:
            return False
        with connection:
            if _inode(connection) != self.inode:
                return False
            with suppress(OSError):
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
        inode=None if descriptor is None else _inode_of_process(descriptor, pid),
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


def _inode_of_process(descriptor: int, pid: int | None) -> int | None:
    """The inode of the connection to this process; None when the number has become another's before it is looked at."""
    connection = _copy(descriptor)
    if connection is None:
        return None
    with connection:
        return _inode(connection) if pid is None or _pid_of(connection) in (pid, None) else None


def _copy(descriptor: int) -> socket.socket | None:
    """The socket with this descriptor, which stays what it is while it is looked at, whatever libzmq's thread does with
    the original; None when it is none any more."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    if not stat.S_ISSOCK(os.fstat(copy).st_mode):
        os.close(copy)
        return None
    return socket.socket(fileno=copy)


def _inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


def _pid_of(connection: socket.socket) -> int | None:
    """Of the process at the other end; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        return None
    return pid
