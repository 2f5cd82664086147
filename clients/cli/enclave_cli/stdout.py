"""Standard output, where results go. Commands and sinks write here, so that a failure to write is known as just that.

A reader that has gone away is no such failure: BrokenPipeError stays what it is, for main.py to end quietly.
"""

from __future__ import annotations

import sys


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
