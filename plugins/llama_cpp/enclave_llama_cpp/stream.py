"""A C `FILE*` over a descriptor that the worker was handed: the only way into llama.cpp that needs no path.

The descriptor stays the caller's; the stream has a duplicate. Opening `/proc/self/fd/N` instead would be refused in
the sandbox, like any open.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from enclaved.plugin.engine import LoadError


class FileStream:
    """Open for reading from the first byte, until `close`.

    A duplicate shares its reading position with the descriptor and with everyone who got that descriptor from the
    same `open`: each load needs a descriptor of its own. Raises LoadError.
    """

    def __init__(self, descriptor: int) -> None:
        if os.name != "posix":
            raise LoadError("models can be loaded from an open file on POSIX systems only")
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
        libc.fdopen.restype = ctypes.c_void_p
        libc.fclose.argtypes = [ctypes.c_void_p]
        self._fclose: Any = libc.fclose
        duplicate = -1
        try:
            duplicate = os.dup(descriptor)
            os.lseek(duplicate, 0, os.SEEK_SET)
        except OSError as error:
            if duplicate >= 0:
                os.close(duplicate)
            raise LoadError(f"the model's file cannot be read: {error.strerror}") from error
        self.pointer: int | None = libc.fdopen(duplicate, b"rb")
        if not self.pointer:
            os.close(duplicate)
            raise LoadError(f"the model's file cannot be read: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Closing twice is harmless."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._fclose(pointer)
