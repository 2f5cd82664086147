"""Where an answer goes while it comes: plain text for people, one JSON document or JSON lines for programs.

answers.py feeds one of these per answer. Only they write to standard output, so that its purity is kept in one place:
with text, nothing but the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

from enclave_cli import stdout
from enclave_cli.output import json_text, plain, plain_map
from enclave_cli.progress import sentence

if TYPE_CHECKING:
    from enclave.protocol.bodies import TextChunk, TokenChoice
    from enclave.protocol.messages import Progress
    from enclave_cli.daemon import Answer
    from enclave_cli.status_line import StatusLine


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
    """The answer's text as it is. A model's reasoning is no part of it: it is only told of."""

    def __init__(self, status: StatusLine, model: str, *, terminal: bool | None = None) -> None:
        self._status = status
        self._model = model
        self._text = stdout.ExactText(terminal=terminal)

    def progress(self, progress: Progress) -> None:
        self._show(sentence(progress, self._model))

    def chunk(self, chunk: TextChunk) -> None:
        if chunk.text:
            self._status.clear()
            self._text.write(chunk.text)
        elif chunk.reasoning:
            self._show(f"{self._model} is reasoning")

    def _show(self, news: str) -> None:
        if self._text.ends_in_newline:
            # In the middle of a line of the answer there is no place for it.
            self._status.show(news)

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        self._status.clear()

    def close(self) -> None:
        self._status.clear()
        self._text.end()


class DocumentSink:
    """One JSON document when the answer is complete."""

    def __init__(self, status: StatusLine, model: str) -> None:
        self._status = status
        self._model = model
        self._texts: dict[int, list[str]] = {0: []}
        self._logprobs: list[TokenChoice] = []
        self._reasoning: list[str] = []

    def progress(self, progress: Progress) -> None:
        self._status.show(sentence(progress, self._model))

    def chunk(self, chunk: TextChunk) -> None:
        self._status.clear()
        self._texts.setdefault(chunk.choice, []).append(chunk.text)
        if chunk.choice == 0:
            self._logprobs.extend(chunk.logprobs)
            self._reasoning.append(chunk.reasoning or "")

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        self._status.clear()
        reasoning = "".join(self._reasoning)
        texts = ["".join(self._texts[choice]) for choice in sorted(self._texts)]
        _write_line(
            {
                "text": texts[0],
                **({"texts": texts} if len(texts) > 1 else {}),
                **({"logprobs": plain(tuple(self._logprobs))} if self._logprobs else {}),
                **({"reasoning": reasoning} if reasoning else {}),
                **_ending(result),
                "receipt": receipt,
            }
        )

    def close(self) -> None:
        self._status.clear()


class LinesSink:
    """A JSON document a line, each with its `type`, as soon as it is known."""

    def progress(self, progress: Progress) -> None:
        values = {name: value for name, value in plain_map(progress).items() if name != "id" and value is not None}
        _write_line({"type": "progress", **values})

    def chunk(self, chunk: TextChunk) -> None:
        beside = {
            "choice": chunk.choice,
            "logprobs": plain(chunk.logprobs),
            "reasoning": chunk.reasoning,
            "tool_calls": plain(chunk.tool_calls),
        }
        told = {name: value for name, value in beside.items() if value}
        _write_line({"type": "chunk", "text": chunk.text, "tokens": plain(chunk.tokens), **told})

    def result(self, result: Answer, receipt: dict[str, object]) -> None:
        _write_line({"type": "result", **_ending(result), "receipt": receipt})

    def close(self) -> None:
        pass


def message_of(result: Answer) -> Mapping[str, object] | None:
    """The message that a chat's answer is, to be appended to the conversation; None for any other answer."""
    return cast("Mapping[str, object] | None", getattr(result, "message", None))


def _ending(result: Answer) -> dict[str, object]:
    message = message_of(result)
    reasons = cast("tuple[str, ...]", getattr(result, "finish_reasons", ()))
    return {
        **({"message": message} if message is not None else {}),
        "finish_reason": result.finish_reason,
        **({"finish_reasons": plain(reasons)} if len(reasons) > 1 else {}),
        "usage": plain(result.usage),
        "timings": plain(result.timings),
    }


def _write_line(value: object) -> None:
    stdout.write(json_text(value) + "\n")
