"""A model's vocabulary through llama.cpp's tokeniser, of a loaded model or opened on its own.

Every id is checked here first: llama.cpp ends the process over one that is out of range. The functions used only read
the vocabulary, so any thread may call them; `close` is the engine's, after the last call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import llama_cpp

from enclave_llama_cpp.deep_stack import run_deep
from enclave_llama_cpp.log import captured_load
from enclave_llama_cpp.stream import FileStream
from enclaved.plugin.engine import EngineError, OpenFile, Token, Vocabulary

TEXT_BYTES_MAX = 256 * 1024 * 1024
"""Well below the 2^31 at which llama.cpp's own lengths overflow."""
SHALLOW_CHARACTERS = 2000
"""A text so short fits every stack, whatever its words."""


class LlamaCppVocabulary(Vocabulary):
    """See `Vocabulary`."""

    def __init__(self, pointer: Any) -> None:
        self._pointer: Any = pointer
        self._size = int(llama_cpp.llama_vocab_n_tokens(pointer))
        # Such vocabularies cut a text into words first, many of them by a regular expression that recurses once a
        # character: a word of 30,000 would overflow a stack of 8 MiB, and end the process.
        self._recurses = int(llama_cpp.llama_vocab_type(pointer)) == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        self._pieces: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        pointer = self._open()
        # Half a surrogate pair, as JSON can bring one, has no UTF-8; it becomes a question mark.
        raw = text.encode("utf-8", "replace")
        if len(raw) > TEXT_BYTES_MAX:
            raise EngineError(f"a text of {len(raw):,} bytes is too long to tokenise; {TEXT_BYTES_MAX:,} are the most")
        if self._recurses and len(text) > SHALLOW_CHARACTERS:
            return run_deep(lambda: _tokens(pointer, raw, add_special, parse_special), len(text))
        return _tokens(pointer, raw, add_special, parse_special)

    def encode_pair(self, query: str, document: str) -> list[Token]:
        """As cross-encoders see them: begin, query, separator, document, end, of which each vocabulary has what it was
        trained with; `[CLS] query [SEP] document [SEP]` or `<s> query </s></s> document </s>`."""
        pointer = self._open()
        around = self.encode("", add_special=True, parse_special=False)
        begin = around[: 1 if llama_cpp.llama_vocab_get_add_bos(pointer) else 0]
        end = around[len(begin) :]
        separator = end if llama_cpp.llama_vocab_get_add_eos(pointer) else []
        if llama_cpp.llama_vocab_get_add_sep(pointer) or not separator:
            token = int(llama_cpp.llama_vocab_sep(pointer))
            if token < 0:
                raise EngineError("this vocabulary has nothing to put between a query and a document")
            separator = [*separator, Token(token)]
        first, second = (self.encode(text, add_special=False, parse_special=False) for text in (query, document))
        return [*begin, *first, *separator, *second, *end]

    def piece(self, token: Token) -> bytes:
        self._check(token)
        known = self._pieces.get(token)
        if known is not None:
            return known
        pointer = self._open()
        room = 64
        for _ in range(2):
            text = ctypes.create_string_buffer(room)
            count = int(llama_cpp.llama_token_to_piece(pointer, token, text, room, 0, False))
            if count >= 0:
                piece = text.raw[:count]
                self._pieces[token] = piece
                return piece
            room = -count
        raise EngineError(f"token {token} has no text")

    def ends_generation(self, token: Token) -> bool:
        self._check(token)
        return bool(llama_cpp.llama_vocab_is_eog(self._open(), token))

    def close(self) -> None:
        """The model is about to be freed, and the vocabulary with it."""
        self._pointer = None

    def _check(self, token: int) -> None:
        if not 0 <= token < self._size:
            raise ValueError(f"token {token} is not in the vocabulary of {self._size:,}")

    def _open(self) -> Any:
        if self._pointer is None:
            raise EngineError("the model has been unloaded")
        return self._pointer


def _tokens(pointer: Any, raw: bytes, add_special: bool, parse_special: bool) -> list[Token]:
    room = len(raw) + 8
    for _ in range(2):
        tokens = (ctypes.c_int32 * room)()
        count = int(llama_cpp.llama_tokenize(pointer, raw, len(raw), tokens, room, add_special, parse_special))
        if count >= 0:
            return [Token(token) for token in tokens[:count]]
        room = -count
    raise EngineError("the text cannot be tokenised")


class OpenedVocabulary(LlamaCppVocabulary):
    """A vocabulary without its model: of a file whose weights were not loaded, or that has none."""

    def __init__(self, model: Any) -> None:
        super().__init__(llama_cpp.llama_model_get_vocab(model))
        self._model: Any = model

    def close(self) -> None:
        super().close()
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None


def open_vocabulary(files: Sequence[OpenFile]) -> OpenedVocabulary:
    """The vocabulary of a GGUF file, the rest of which is not read. Keeps no file open, so that a model that is deleted
    gives its space on the disk back. Raises EngineError."""
    weights = [file for file in files if file.role == "weights"]
    if not weights:
        raise EngineError("the model has no GGUF file")
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # there is nothing to map
    stream = FileStream(weights[0].descriptor)
    try:
        with captured_load() as log:
            model: Any = llama_cpp.llama_model_load_from_file_ptr(cast("Any", stream.pointer), params)
    finally:
        stream.close()
    if not model:
        raise EngineError(f"its vocabulary cannot be read: {log.reason}")
    return OpenedVocabulary(model)
