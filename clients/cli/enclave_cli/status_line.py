"""One line at the bottom of a terminal that says what is being waited for, and leaves no trace.

Commands that wait tell it their progress. Where standard error is not a terminal it writes nothing at all.
"""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import TextIO

from enclave_cli.output import cut, line

_CLEAR = "\r\x1b[K"


class StatusLine:
    """Used as a context manager, so that the line is gone whatever ends the command."""

    def __init__(self, stream: TextIO, *, shown: bool | None = None) -> None:
        self._stream = stream
        self._shown = stream.isatty() if shown is None else shown
        self._now = ""

    def __repr__(self) -> str:
        return f"StatusLine({self._now!r}{'' if self._shown else ', hidden'})"

    def show(self, text: str) -> None:
        """Replaces the line. Longer text is cut at the terminal's width: a line that wraps cannot be taken back."""
        text = line(text)
        if not self._shown or text == self._now:
            return
        columns = shutil.get_terminal_size().columns
        self._stream.write(_CLEAR + cut(text, max(columns - 1, 1)))
        self._stream.flush()
        self._now = text

    def clear(self) -> None:
        """Takes the line away; harmless when there is none."""
        if self._now:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._now = ""

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
