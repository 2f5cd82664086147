"""The inspector with vocabularies: text to tokens and back for models that need not be loaded.

Opening a vocabulary takes up to a second, so the last few stay open.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

from enclave.protocol.bodies import DetokenizeParams, DetokenizeResult, TokenizeParams, TokenizeResult
from enclave.protocol.codec import decode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.methods import write_body
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.link.messages import FromChild, UseVocabulary, VocabularyRefused, VocabularyUsed
from enclaved.plugin.engine import EngineError, OpenFile, Token, Vocabulary
from enclaved.plugin.model import FileRole, HeaderError
from enclaved.worker.heavy import load_attribute
from enclaved.worker.inspect import shown
from enclaved.worker.intake import RefusedError
from enclaved.worker.text.detokenise import Detokeniser

OPEN_MAX = 4

Opener = Callable[[Sequence[OpenFile]], Vocabulary]
_Key = tuple[str, tuple[tuple[int, int, int, int], ...]]


class Vocabularies:
    """Answers one request after the other."""

    def __init__(self) -> None:
        self._open: OrderedDict[_Key, Vocabulary] = OrderedDict()

    def answer(self, job: UseVocabulary, descriptors: Sequence[int]) -> FromChild:
        """The answer, or why there is none. Closes the descriptors."""
        try:
            try:
                vocabulary = self._vocabulary(job, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            return VocabularyUsed(job.job, _written(answered(job.method, job.body, vocabulary)))
        except RefusedError as refused:
            return _refused(job, refused.code, refused.message, refused.field)
        except (EngineError, HeaderError, ImportError, OSError) as error:
            return _refused(job, "bad_model_file", str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001
            # An opener should map these; a hostile file that finds a gap in it is refused all the same.
            return _refused(job, "bad_model_file", f"the vocabulary cannot be read ({type(error).__name__})")

    def _vocabulary(self, job: UseVocabulary, descriptors: Sequence[int]) -> Vocabulary:
        stats = [os.fstat(descriptor) for descriptor in descriptors]
        key: _Key = (job.opener, tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
        found = self._open.get(key)
        if found is not None:
            self._open.move_to_end(key)
            return found
        files = [
            OpenFile(cast("FileRole", role), str(name), descriptor, int(size))
            for (role, name, size), descriptor in zip(job.files, descriptors, strict=True)
        ]
        opener: Opener = load_attribute(job.opener)
        while len(self._open) >= OPEN_MAX:
            self._open.popitem(last=False)[1].close()
        vocabulary = self._open[key] = opener(files)
        return vocabulary


def answered(method: str, body: bytes, vocabulary: Vocabulary) -> TokenizeResult | DetokenizeResult:
    """The result of `tokenize` or `detokenize`. Raises RefusedError."""
    try:
        plain: object = unpack(body, BODY_LIMITS, "body") if body else dict[str, object]()
        if method == "tokenize":
            params = decode(TokenizeParams, plain)
            return TokenizeResult(tokens=tuple(_encoded(params, vocabulary)))
        return DetokenizeResult(text=_decoded(decode(DetokenizeParams, plain).tokens, vocabulary))
    except RemoteProtocolError as error:
        raise RefusedError.of(error) from error


def _encoded(params: TokenizeParams, vocabulary: Vocabulary) -> list[Token]:
    try:
        tokens = vocabulary.encode(params.text, add_special=params.special, parse_special=params.parse_special)
    except EngineError as error:
        raise RefusedError("bad_request", f"text: {error}", field="text") from error
    if len(tokens) > BODY_LIMITS.array_items:
        raise _too_large(f"the text has {len(tokens):,} tokens, and {BODY_LIMITS.array_items:,} fit one answer")
    return tokens


def _decoded(wanted: Sequence[int], vocabulary: Vocabulary) -> str:
    wrong = next((index for index, token in enumerate(wanted) if token >= vocabulary.size), None)
    if wrong is not None:
        message = f"tokens[{wrong}]: token {wanted[wrong]} is outside the vocabulary of {vocabulary.size:,}"
        raise RefusedError("bad_request", message, field="tokens")
    detokeniser = Detokeniser()
    texts: list[str] = []
    length = 0
    for token in wanted:
        text = detokeniser.feed(vocabulary.piece(Token(token)))
        length += len(text)
        if length > BODY_LIMITS.frame_bytes:
            raise _too_large(_TEXT_TOO_LONG)
        texts.append(text)
    return "".join([*texts, detokeniser.end()])


def _written(result: TokenizeResult | DetokenizeResult) -> bytes:
    """As one body, which a client may refuse when it is larger than a body may be."""
    body = write_body(result)
    if len(body) > BODY_LIMITS.frame_bytes:
        raise _too_large(_TEXT_TOO_LONG)
    return body


_TEXT_TOO_LONG = f"the text is longer than the {BODY_LIMITS.frame_bytes:,} bytes that fit one answer"


def _too_large(message: str) -> RefusedError:
    return RefusedError("too_large", f"{message}; ask in parts", field="body")


def _refused(job: UseVocabulary, code: str, reason: str, field: str | None = None) -> VocabularyRefused:
    return VocabularyRefused(job.job, code, shown(reason), field)
