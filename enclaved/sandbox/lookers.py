"""Keeps other programs of the same user out of this process's memory, where prompts and answers lie.

Called by every child at its start, and by the daemon itself.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import Final

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


def shut_lookers_out() -> None:
    """No core dump from now on, and on Linux no debugger or look into /proc by another program of this user.

    Raises OSError when the kernel has this and it does not hold.
    """
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    # A core_pattern that pipes ignores the limit's size; it doesn't ignore this, nor does a debugger of the same user.
    libc = ctypes.CDLL(None, use_errno=True)
    unused = [ctypes.c_ulong(0)] * 4
    if libc.prctl(_PR_SET_DUMPABLE, *unused) != 0 or libc.prctl(_PR_GET_DUMPABLE, *unused) != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, "this process's memory stays visible to other programs of this user")
