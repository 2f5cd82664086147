"""Opening a model's file, and telling one file from another. The daemon opens files; it never reads them."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from enclaved.daemon.refusal import RefusalError


class FileIdentity(NamedTuple):
    """Which file it is: as long as this stays the same, so does the content, as far as can be told without reading."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """What the system says of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        return f"file:{self.device:x}-{self.inode:x}-{self.size_bytes}-{self.modified_ns}"


def open_model_file(path: str) -> tuple[int, FileIdentity]:
    """An open descriptor of a regular file, and which file it is; the caller closes it.

    Raises RefusalError (`model_unreadable`) that names the file and the reason.
    """
    # Without O_NONBLOCK a named pipe would hold the daemon up until somebody writes to it.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise RefusalError("model_unreadable", f"{path}: there is no such file") from None
    except PermissionError:
        raise RefusalError("model_unreadable", f"{path}: you may not read this file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RefusalError("model_unreadable", f"{path}: {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise RefusalError(
            "model_unreadable", f"{path}: this is {what}, not a model file", hint="Name the model's file itself."
        )
    return descriptor, FileIdentity.of(status)


def identity_of(path: str) -> FileIdentity:
    """Which file lies at a path. Raises RefusalError (`model_unreadable`)."""
    descriptor, identity = open_model_file(path)
    os.close(descriptor)
    return identity


def is_being_written(path: str) -> bool | None:
    """Whether some process has a file open for writing; None where the system does not say.

    It is asked by a read lease (fcntl(2), F_SETLEASE), which Linux grants the owner only while nobody writes. The lease
    is given back at once; whoever opens the file in between waits for that, and this process gets a SIGIO, which it
    must ignore.
    """
    try:
        from fcntl import F_RDLCK, F_SETLEASE, F_UNLCK, fcntl
    except ImportError:
        return None
    try:
        descriptor, _ = open_model_file(path)
    except RefusalError:
        return None
    try:
        fcntl(descriptor, F_SETLEASE, F_RDLCK)
        fcntl(descriptor, F_SETLEASE, F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
