"""Where the prompt of `enclave run` comes from: the command line, a pipe, or both.

Reading a terminal line by line is prompt_loop.py's matter.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from typing import BinaryIO

from enclave_cli.errors import CommandError, Problem, usage
from enclave_cli.output import size

_PATIENCE_SECONDS = 2.0
"""How long an open pipe may be silent before a word is said: whoever inherited a pipe by accident would wait for ever
and not know for what."""

WAITING = "waiting for the prompt's text on standard input (`< /dev/null` where none is to come)"


def joined(prompt: str | None, piped: str | None) -> str | None:
    """The prompt as it is sent: what was typed, a blank line, what was piped. None when there is neither.

    The piped text loses one final newline, which programs put there and nobody means; an empty pipe is no prompt.
    """
    if piped is not None:
        piped = piped.removesuffix("\n").removesuffix("\r")
    if not piped:
        return prompt
    return piped if not prompt else f"{prompt}\n\n{piped}"


def may_bring_text(descriptor: int) -> bool:
    """Whether something was put at standard input on purpose: a pipe, a file or a socket, no terminal and no null
    device."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_piped(note: Callable[[str], None]) -> str | None:
    """Everything that standard input brings until its end; None where nothing was piped in.

    `note` is told once when the other end keeps silent. Raises CommandError: usage for bytes that are no UTF-8,
    too_large as soon as more came than a request can hold.
    """
    if sys.stdin is None or sys.stdin.closed:  # pyright: ignore[reportUnnecessaryComparison] - None when fd 0 is closed
        return None
    descriptor = sys.stdin.fileno()
    if not may_bring_text(descriptor):
        return None
    if os.name == "posix" and not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
        note(WAITING)
    return _decoded(_read_limited(sys.stdin.buffer))


def read_terminal() -> str:
    """Everything typed until Ctrl-D, where the answer goes elsewhere than to the terminal."""
    return _decoded(_read_limited(sys.stdin.buffer))


def _read_limited(stream: BinaryIO) -> bytes:
    # Imported here, since `enclave run --help` needs neither this nor the libraries below it.
    from enclave.protocol.packing import BODY_LIMITS

    bytes_max = BODY_LIMITS.frame_bytes
    data = stream.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise CommandError(
            Problem(
                "too_large",
                f"standard input brings more than {bytes_max:,} bytes ({size(bytes_max)}), all that a request holds",
                "pipe in less, for example with `head -c`; a model's context takes far less as well",
                numbers={"bytes_max": bytes_max},
            )
        )
    return data


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise usage(
            f"standard input is not UTF-8 text (byte {error.start:,})", "convert it first, for example with iconv"
        ) from None
