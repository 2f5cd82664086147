"""What callers get: results with text gathered from the chunks, vectors as arrays, and the receipt of each call.

Pure: the clients hand in what came over the wire. What needs no gathering is given as the protocol's own types.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any

from enclave.protocol.bodies import ChatResult as WireChatResult
from enclave.protocol.bodies import EmbedResult as WireEmbedResult
from enclave.protocol.bodies import GenerateResult as WireGenerateResult
from enclave.protocol.bodies import JsonMap, PrefillResult, Ranked, RerankResult, TextChunk, Timings, TokenChoice, Usage
from enclave.protocol.codec import field_names
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.messages import Result
from enclave.protocol.methods import read_result
from enclave.protocol.records import record


@record
class Receipt:
    """Who answered and what it took, from the result's header and its body; unset where the daemon didn't say."""

    model: str | None = None
    """Its canonical name."""
    model_hash: str | None = None
    """Which file it was: its hash, or `file:` with device, inode, size and time of change until that is known."""
    backend: str | None = None
    device: str | None = None
    instance: str | None = None
    template: str | None = None
    """What the prompt was rendered with; None when it was taken as it is."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    uncached_reason: str | None = None
    """Why the rest of the prompt was not taken from a cache."""
    left_out_tokens: int | None = None
    """Of the prompt, because the request allowed it."""
    shifted_tokens: int | None = None
    """Dropped from the context while the answer was made, because the request allowed it."""
    context_full: bool | None = None
    """Whether the answer ended because the context was full."""
    seed: int | None = None
    """What the answer was drawn with."""
    queued_seconds: float | None = None
    """Waiting, without the load."""
    loading_seconds: float | None = None
    """Zero when the model was there already."""
    prompt_seconds: float | None = None
    decoding_seconds: float | None = None
    preempted: int | None = None
    """How often it was parked for something more urgent."""
    charged_seconds: float | None = None
    """Of the device, as the scheduler's fairness counts them."""
    context: int | None = None
    """Tokens of context that the sequence had."""


@record
class TextResult:
    """The whole answer of generate or infill."""

    text: str
    """Of the first choice."""
    texts: tuple[str, ...]
    """Of every choice."""
    tokens: tuple[int, ...]
    """Ids of the first choice, as far as the backend sent them."""
    logprobs: tuple[TokenChoice, ...]
    """Of the first choice's tokens, where asked for."""
    finish_reason: str
    finish_reasons: tuple[str, ...]
    usage: Usage
    timings: Timings
    receipt: Receipt


@record
class ChatResult(TextResult):
    """The whole answer of a chat."""

    message: JsonMap
    """role, content, tool_calls, …: to be appended to the conversation."""


@record
class Embeddings:
    """Vectors in the order of the texts."""

    vectors: memoryview[float]
    """float32[n, d]; `numpy.asarray` takes it without copying, `.tolist()` gives lists."""
    truncated: tuple[int, ...] = ()
    """The texts, from 0, that were cut because the request allowed it."""
    usage: Usage
    receipt: Receipt


@record
class Ranking:
    """Documents, best first."""

    ranking: tuple[Ranked, ...]
    """Each with its `index` among the documents and its `score`."""
    truncated: tuple[int, ...] = ()
    """The documents, from 0, that were cut because the request allowed it."""
    usage: Usage
    receipt: Receipt


@record
class Prefilled:
    """What lies computed now."""

    usage: Usage
    receipt: Receipt


class Gathered:
    """The texts and tokens of a streamed answer so far, by choice."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[int]] = {}
        self._logprobs: list[TokenChoice] = []
        self._tool_calls: list[JsonMap] = []

    def add(self, chunk: TextChunk) -> None:
        """Append a chunk to its choice."""
        self._texts.setdefault(chunk.choice, []).append(chunk.text)
        self._tokens.setdefault(chunk.choice, []).extend(chunk.tokens)
        if chunk.choice == 0:
            self._logprobs.extend(chunk.logprobs)
            self._tool_calls.extend(chunk.tool_calls)

    @property
    def text(self) -> str:
        """Of the first choice."""
        return "".join(self._texts.get(0, ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """One text a choice; a choice that said nothing has an empty one."""
        count = max(self._texts, default=0) + 1
        return tuple("".join(self._texts.get(choice, ())) for choice in range(count))

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens.get(0, ()))

    @property
    def logprobs(self) -> tuple[TokenChoice, ...]:
        return tuple(self._logprobs)

    @property
    def tool_calls(self) -> tuple[JsonMap, ...]:
        return tuple(self._tool_calls)


_OF_USAGE = field_names(Usage)
_OF_RESULT = ("template", "seed", "context_full")
_OF_BODY = frozenset({*_OF_USAGE, *_OF_RESULT})
_OF_HEADER = tuple(name for name in field_names(Receipt) if name not in _OF_BODY)


def receipt_of(result: Result, usage: Usage, value: object = None) -> Receipt:
    """The receipt in a result's header, with what its body, `value`, says."""
    return Receipt(
        **{name: getattr(value, name, None) for name in _OF_RESULT},
        **{name: getattr(result, name) for name in _OF_HEADER},
        **{name: getattr(usage, name) for name in _OF_USAGE},
    )


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
        vectors = _vectors(value, result)
        receipt = receipt_of(result, value.usage)
        return Embeddings(vectors=vectors, truncated=value.truncated, usage=value.usage, receipt=receipt)
    if isinstance(value, RerankResult):
        receipt = receipt_of(result, value.usage)
        return Ranking(ranking=value.ranking, truncated=value.truncated, usage=value.usage, receipt=receipt)
    if isinstance(value, PrefillResult):
        return Prefilled(usage=value.usage, receipt=receipt_of(result, value.usage))
    return value


def _text_fields(value: WireGenerateResult | WireChatResult, result: Result, gathered: Gathered) -> dict[str, Any]:
    return {
        "text": gathered.texts[0],
        "texts": gathered.texts,
        "tokens": gathered.tokens,
        "logprobs": gathered.logprobs,
        "finish_reason": value.finish_reason,
        "finish_reasons": value.finish_reasons or (value.finish_reason,),
        "usage": value.usage,
        "timings": value.timings,
        "receipt": receipt_of(result, value.usage, value),
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
