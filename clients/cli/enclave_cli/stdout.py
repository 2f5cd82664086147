"""Standard output, where results go. Commands and sinks write here, so that a failure to write is known as just that.

A reader that has gone away is no such failure: BrokenPipeError stays what it is, for main.py to end quietly.
"""

from __future__ import annotations

import sys

from enclave_cli.output import clean

_KEPT_ON_A_TERMINAL = "\n\t"


class OutputError(Exception):
    """Standard output cannot be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def write(text: str) -> None:
    """Writes and flushes. Raises OutputError, or BrokenPipeError."""
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
