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
from enclaved.link.framing import FRAME_BYTES_MAX
from enclaved.link.messages import FromChild, UseVocabulary, VocabularyRefused, VocabularyUsed
from enclaved.plugin.engine import EngineError, OpenFile, Token, Vocabulary
from enclaved.plugin.model import FileRole, HeaderError
from enclaved.worker.heavy import load_attribute
from enclaved.worker.intake import RefusedError
from enclaved.worker.text.detokenise import Detokeniser

OPEN_MAX = 4
REASON_CHARACTERS_MAX = 1000
"""Of a refusal: a sentence or two."""

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
            body = write_body(answered(job.method, job.body, vocabulary))
            if len(body) > FRAME_BYTES_MAX - 1024:
                raise RefusedError("too_large", "the answer is too large for one message; ask in parts", field="body")
            return VocabularyUsed(job.job, body)
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
    """The result of `tokenize` or `detokenize`. Raises RefusedError, EngineError."""
    try:
        plain: object = unpack(body, BODY_LIMITS, "body") if body else dict[str, object]()
        if method == "tokenize":
            params = decode(TokenizeParams, plain)
            tokens = vocabulary.encode(params.text, add_special=params.special, parse_special=params.parse_special)
            return TokenizeResult(tokens=tuple(tokens))
        wanted = decode(DetokenizeParams, plain).tokens
    except RemoteProtocolError as error:
        code = "bad_request" if error.code == "bad_message" else error.code
        raise RefusedError(code, error.message, field=error.field or "body") from error
    wrong = next((index for index, token in enumerate(wanted) if token >= vocabulary.size), None)
    if wrong is not None:
        message = f"tokens[{wrong}]: token {wanted[wrong]} is outside the vocabulary of {vocabulary.size:,}"
        raise RefusedError("bad_request", message, field="tokens")
    detokeniser = Detokeniser()
    pieces = [detokeniser.feed(vocabulary.piece(Token(token))) for token in wanted]
    return DetokenizeResult(text="".join(pieces) + detokeniser.end())


def _refused(job: UseVocabulary, code: str, reason: str, field: str | None = None) -> VocabularyRefused:
    # The reason may quote the file, whose texts need not be Unicode.
    text = reason[:REASON_CHARACTERS_MAX].encode("utf-8", "replace").decode()
    return VocabularyRefused(job.job, code, text, field)
