"""Where the script `enclave` begins: Ctrl-C is quiet from the first moment, before anything slow is imported.

It knows of signals and of nothing else; what `enclave` does is main.py's matter.
"""

from __future__ import annotations

import os

_INTERRUPTED = 130
"""ExitCode.INTERRUPTED, whose module is not imported yet."""

try:
    import signal
    from typing import TYPE_CHECKING
except KeyboardInterrupt:
    os._exit(_INTERRUPTED)

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # Nothing has begun, so nothing is to be ended: an exception would only become the traceback of an import.
    os._exit(_INTERRUPTED)


# A shell that starts a program in the background has it ignore Ctrl-C, and that stays.
_minds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _minds_ctrl_c:
    signal.signal(signal.SIGINT, _leave)


def main() -> int:
    """Runs the command line and gives its exit code."""
    from enclave_cli.main import main as command_line

    try:
        if _minds_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return command_line()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _INTERRUPTED
