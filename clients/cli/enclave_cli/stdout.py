"""Standard output, where results go. Commands and sinks write here, so that a failure to write is known as just that.

A reader that has gone away is no such failure: BrokenPipeError stays what it is, for main.py to end quietly.
"""

from __future__ import annotations

import os
import sys

from enclave_cli.output import clean

_KEPT_ON_A_TERMINAL = "\n\t"


class OutputError(Exception):
    """Standard output cannot be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


_is_mid_line = False
"""Whether what was written last did not end its line."""


def is_closed() -> bool:
    """Whether this process was started without standard output (`>&-`): Python has none then."""
    return sys.__stdout__ is None


def begin_line_on_stderr() -> None:
    """To be called before a remark on standard error: where both go to one file, it is not to be glued to the end of an
    answer, which gets no newline there."""
    global _is_mid_line
    if _is_mid_line and _is_stderrs_file():
        sys.stderr.write("\n")
        _is_mid_line = False


def _is_stderrs_file() -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError):  # no files at all
        return False


def write(text: str) -> None:
    """Writes and flushes. Raises OutputError, or BrokenPipeError."""
    global _is_mid_line
    if text:
        _is_mid_line = not text.endswith("\n")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error) from error


class ExactText:
    """Text that is itself the result, piece by piece: into a file or a pipe exactly as it is. On a terminal control
    characters are replaced, since a model may have learnt any, and the text ends in a newline, so that the shell's
    prompt stands on a line of its own."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self.ends_in_newline = True

    def write(self, text: str) -> None:
        """The next piece."""
        if text:
            self.ends_in_newline = text.endswith("\n")
            write(clean(text, keep=_KEPT_ON_A_TERMINAL) if self._terminal else text)

    def end(self) -> None:
        """There is no more; saying so twice is harmless."""
        if self._terminal and not self.ends_in_newline:
            self.ends_in_newline = True
            write("\n")


def write_exactly(text: str) -> None:
    """A whole text as ExactText does it."""
    whole = ExactText()
    whole.write(text)
    whole.end()
