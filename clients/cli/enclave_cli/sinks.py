"""Where an answer goes while it comes: plain text for people, one JSON document or JSON lines for programs.

`enclave run` feeds one of these per answer. Only they write to standard output, so that its purity is kept in one
place: with text, nothing but the answer.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from enclave_cli import stdout
from enclave_cli.output import clean, json_text, plain, plain_map
from enclave_cli.progress import sentence

if TYPE_CHECKING:
    from enclave.protocol.bodies import TextChunk
    from enclave.protocol.messages import Progress
    from enclave_cli.daemon import Answer
    from enclave_cli.status_line import StatusLine

_KEPT_ON_A_TERMINAL = "\n\t"


class Sink(Protocol):
    """Takes an answer piece by piece."""

    def progress(self, progress: Progress) -> None:
        """Why there is no text yet."""

    def chunk(self, chunk: TextChunk) -> None:
        """The next piece, with `.text` and `.tokens`."""

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        """The end of an answer that was not cut short."""

    def close(self) -> None:
        """Called once, whatever ended the answer."""


class TextSink:
    """The answer's text as it is. On a terminal control characters are replaced, since a model may have learnt any,
    and the text ends in a newline, so that the shell's prompt stands on a line of its own."""

    def __init__(self, status: StatusLine, model: str, *, terminal: bool | None = None) -> None:
        self._status = status
        self._model = model
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._ends_in_newline = True

    def progress(self, progress: Progress) -> None:
        if self._ends_in_newline:
            # In the middle of a line of the answer there is no place for it.
            self._status.show(sentence(progress, self._model))

    def chunk(self, chunk: TextChunk) -> None:
        text = chunk.text
        if not text:
            return
        self._status.clear()
        self._ends_in_newline = text.endswith("\n")
        stdout.write(clean(text, keep=_KEPT_ON_A_TERMINAL) if self._terminal else text)

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        self._status.clear()

    def close(self) -> None:
        self._status.clear()
        if self._terminal and not self._ends_in_newline:
            self._ends_in_newline = True
            stdout.write("\n")


class DocumentSink:
    """One JSON document when the answer is complete."""

    def __init__(self, status: StatusLine, model: str) -> None:
        self._status = status
        self._model = model
        self._texts: list[str] = []

    def progress(self, progress: Progress) -> None:
        self._status.show(sentence(progress, self._model))

    def chunk(self, chunk: TextChunk) -> None:
        self._status.clear()
        self._texts.append(chunk.text)

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        self._status.clear()
        _write_line({"text": "".join(self._texts), **_ending(result), "receipt": receipt})

    def close(self) -> None:
        self._status.clear()


class LinesSink:
    """A JSON document a line, each with its `type`, as soon as it is known."""

    def progress(self, progress: Progress) -> None:
        values = {name: value for name, value in plain_map(progress).items() if name != "id" and value is not None}
        _write_line({"type": "progress", **values})

    def chunk(self, chunk: TextChunk) -> None:
        _write_line({"type": "chunk", "text": chunk.text, "tokens": plain(chunk.tokens)})

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        _write_line({"type": "result", **_ending(result), "receipt": receipt})

    def close(self) -> None:
        pass


def _ending(result: Answer) -> dict[str, object]:
    return {
        "finish_reason": result.finish_reason,
        "usage": plain(result.usage),
        "timings": plain(result.timings),
    }


def _write_line(value: object) -> None:
    stdout.write(json_text(value) + "\n")
