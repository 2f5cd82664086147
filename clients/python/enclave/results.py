"""What callers get: results with text gathered from the chunks, vectors as arrays, and the receipt of each call.

Pure: the clients hand in what came over the wire. What needs no gathering is given as the protocol's own types.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from typing import Any

from enclave.protocol.codec import field_names
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.messages import Result
from enclave.protocol.methods import ChatResult as WireChatResult
from enclave.protocol.methods import EmbedResult as WireEmbedResult
from enclave.protocol.methods import GenerateResult as WireGenerateResult
from enclave.protocol.methods import JsonMap, TextChunk, Timings, Usage, read_result


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Who answered and what it took; unset where the daemon didn't say."""

    model: str | None = None
    model_hash: str | None = None
    backend: str | None = None
    device: str | None = None
    instance: str | None = None
    queued_seconds: float | None = None
    loading_seconds: float | None = None
    prompt_seconds: float | None = None
    decoding_seconds: float | None = None
    preempted: int | None = None
    charged_seconds: float | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """The whole answer of generate or infill."""

    text: str
    """Of the first choice."""
    texts: tuple[str, ...]
    """Of every choice."""
    tokens: tuple[int, ...]
    """Ids of the first choice, as far as the backend sent them."""
    finish_reason: str
    finish_reasons: tuple[str, ...]
    usage: Usage
    timings: Timings
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult(TextResult):
    """The whole answer of a chat."""

    message: JsonMap
    """role, content, tool_calls, …: to be appended to the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors in the order of the texts."""

    vectors: memoryview[float]
    """float32[n, d]; `numpy.asarray` takes it without copying, `.tolist()` gives lists."""
    usage: Usage
    receipt: Receipt


class Gathered:
    """The texts and tokens of a streamed answer so far, by choice."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[int]] = {}
        self._tool_calls: list[JsonMap] = []

    def add(self, chunk: TextChunk) -> None:
        """Append a chunk to its choice."""
        self._texts.setdefault(chunk.choice, []).append(chunk.text)
        self._tokens.setdefault(chunk.choice, []).extend(chunk.tokens)
        if chunk.choice == 0:
            self._tool_calls.extend(chunk.tool_calls)

    @property
    def texts(self) -> tuple[str, ...]:
        """One text a choice; a choice that said nothing has an empty one."""
        count = max(self._texts, default=0) + 1
        return tuple("".join(self._texts.get(choice, ())) for choice in range(count))

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens.get(0, ()))

    @property
    def tool_calls(self) -> tuple[JsonMap, ...]:
        return tuple(self._tool_calls)


def receipt_of(result: Result) -> Receipt:
    """The receipt in a result's header."""
    return Receipt(**{name: getattr(result, name) for name in field_names(Receipt)})


def finished(method: str, result: Result, gathered: Gathered) -> Any:
    """What the caller gets; raises RemoteProtocolError when the daemon's result makes no sense."""
    value = read_result(method, result)
    if isinstance(value, WireChatResult):
        texts = gathered.texts
        message: JsonMap = {"role": "assistant", "content": texts[0], **(value.message or {})}
        if gathered.tool_calls and "tool_calls" not in message:
            message["tool_calls"] = list(gathered.tool_calls)
        return ChatResult(message=message, **_text_fields(value, result, gathered))
    if isinstance(value, WireGenerateResult):
        return TextResult(**_text_fields(value, result, gathered))
    if isinstance(value, WireEmbedResult):
        return Embeddings(vectors=_vectors(value, result), usage=value.usage, receipt=receipt_of(result))
    return value


def _text_fields(value: WireGenerateResult | WireChatResult, result: Result, gathered: Gathered) -> dict[str, Any]:
    return {
        "text": gathered.texts[0],
        "texts": gathered.texts,
        "tokens": gathered.tokens,
        "finish_reason": value.finish_reason,
        "finish_reasons": value.finish_reasons or (value.finish_reason,),
        "usage": value.usage,
        "timings": value.timings,
        "receipt": receipt_of(result),
    }


def _vectors(value: WireEmbedResult, result: Result) -> memoryview[float]:
    size_bytes = 4 * value.count * value.dimensions
    if len(result.frames) != 1 or len(result.frames[0]) != size_bytes or not size_bytes:
        raise RemoteProtocolError(f"an embedding of {value.count} × {value.dimensions} has another size", field="count")
    frame = result.frames[0]
    if sys.byteorder == "big":
        swapped = array("f", frame)
        swapped.byteswap()
        frame = swapped.tobytes()
    return memoryview(frame).cast("f", (value.count, value.dimensions))
