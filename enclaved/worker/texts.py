"""From a `Submit` that brings texts to their tokens: what is asked of a model that makes vectors or ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

from enclave.protocol.bodies import EmbedParams, RerankParams
from enclave.protocol.codec import decode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.link.messages import Submit
from enclaved.plugin.engine import Engine, EngineError, Token, Vocabulary
from enclaved.worker.intake import RefusedError

VECTORS_BYTES_MAX = 48 * 2**20
"""Of one request: they leave in one message, which has to fit the link and an attachment of the wire."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class ReadTexts:
    """A request to embed or rank, as tokens."""

    params: EmbedParams | RerankParams
    texts: list[list[Token]] = field(repr=False)
    truncated: tuple[int, ...]
    """Indices of those that were cut."""


def read_texts(command: Submit, engine: Engine) -> ReadTexts:
    """Raises RefusedError."""
    abilities, vocabulary = engine.capabilities, engine.vocabulary
    ranks = command.method == "rerank"
    if not (abilities.can_rank if ranks else abilities.can_embed):
        use = "ranks" if abilities.can_rank else "makes vectors" if abilities.can_embed else "generates text"
        wanted = "rank" if ranks else "make vectors"
        raise RefusedError("unsupported", f"The model {use}; it was not trained to {wanted}.", field="method")
    if command.choices != 1:
        raise RefusedError("bad_request", f"choices: {command.method} gives one answer", field="choices")
    try:
        plain = unpack(command.body, BODY_LIMITS, "body")
        params = decode(RerankParams, plain) if ranks else decode(EmbedParams, plain)
    except RemoteProtocolError as error:
        raise RefusedError.of(error) from error
    count = len(params.documents if isinstance(params, RerankParams) else params.texts)
    size_bytes = count * abilities.embedding_length * FLOAT_BYTES
    if size_bytes > VECTORS_BYTES_MAX:
        most = VECTORS_BYTES_MAX // (abilities.embedding_length * FLOAT_BYTES)
        raise RefusedError(
            "too_large",
            f"{count:,} vectors would be {size_bytes:,} bytes; ask for at most {most:,} at a time",
            field="texts",
            numbers={"size": size_bytes, "size_max": VECTORS_BYTES_MAX, "texts_max": most},
        )
    try:
        if isinstance(params, RerankParams):
            texts = [vocabulary.encode_pair(params.query, document) for document in params.documents]
        else:
            texts = [vocabulary.encode(text, add_special=True, parse_special=False) for text in params.texts]
    except EngineError as error:
        message = "The backend could not make tokens of the texts."
        raise RefusedError("bad_request", message, field="texts", detail=str(error)) from error
    return ReadTexts(params, *_fitted(texts, params, abilities.context, vocabulary))


def _fitted(
    texts: list[list[Token]], params: EmbedParams | RerankParams, context: int, vocabulary: Vocabulary
) -> tuple[list[list[Token]], tuple[int, ...]]:
    name = "documents" if isinstance(params, RerankParams) else "texts"
    limit = context if params.truncate_to is None else max(2, min(params.truncate_to, context))
    ending = vocabulary.encode("", add_special=True, parse_special=False)[1:]
    truncated: list[int] = []
    for index, text in enumerate(texts):
        if not text:
            raise RefusedError(
                "bad_request", f"{name}[{index}]: empty, and the model has no token for that", field=name
            )
        if len(text) <= limit:
            continue
        if params.truncate_to is None:
            raise RefusedError(
                "context_exceeded",
                f"{name}[{index}] has {len(text):,} tokens; the model takes {context:,}. Shorten it, or have it cut "
                "with truncate_to.",
                field=name,
                numbers={"index": index, "prompt_tokens": len(text), "prompt_tokens_max": context, "context": context},
            )
        # What the vocabulary puts at the end belongs there after a cut, too.
        kept = ending[-1:] if text[-1:] == ending[-1:] else []
        texts[index] = text[: limit - len(kept)] + kept
        truncated.append(index)
    return texts, tuple(truncated)
