"""A GGUF model loaded into llama.cpp, and what every engine on one does alike: threads, interrupts, its end."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import llama_cpp

from enclave_llama_cpp.loading import check_machine, load_model, memory_use, weights_of
from enclave_llama_cpp.log import LoadLog, captured_load
from enclave_llama_cpp.stream import FileStream
from enclave_llama_cpp.vocabulary import LlamaCppVocabulary
from enclaved.plugin.engine import Engine, EngineError, LoadError, LoadRequest, MemoryUse

MakeContext = Callable[[Any, LoadRequest, LoadLog], Any]
"""Makes a context of a loaded model. Raises LoadError."""


@dataclass
class Parts:
    """What llama.cpp made of a file; `free` gives it back, once."""

    stream: FileStream
    model: Any
    context: Any
    memory: MemoryUse

    def free(self) -> None:
        """What points into the context or the model must have gone before."""
        if self.context:
            llama_cpp.llama_free(self.context)
        if self.model:
            llama_cpp.llama_model_free(self.model)
        self.model = self.context = None
        self.stream.close()


def load_parts(request: LoadRequest, progress: Callable[[float], bool], make_context: MakeContext) -> Parts:
    """Loads the model and makes a context. Raises LoadError; nothing is left over then."""
    weights = weights_of(request.files)
    check_machine(request)
    llama_cpp.llama_backend_init()
    parts = Parts(FileStream(weights.descriptor), None, None, MemoryUse())
    try:
        with captured_load() as log:
            parts.model = load_model(parts.stream, request, progress, log)
            parts.context = make_context(parts.model, request, log)
        parts.memory = memory_use(log)
    except BaseException:
        parts.free()
        raise
    return parts


def check_placement(request: LoadRequest) -> None:
    """Raises LoadError for what no context can be made of."""
    placement = request.placement
    if placement.context < 1 or placement.threads < 1:
        raise LoadError(f"a context of {placement.context} tokens on {placement.threads} threads makes no sense")


class LoadedModel(Engine):
    """The part of an engine that does not depend on what its model is for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._context: Any = parts.context
        """None once it is closed."""
        self._memory: Any = llama_cpp.llama_get_memory(parts.context)
        """NULL for an encoder."""
        self._vocabulary = LlamaCppVocabulary(llama_cpp.llama_model_get_vocab(parts.model))
        self.vocabulary = self._vocabulary
        self._interrupted = False
        # llama.cpp keeps only the pointer: the object must live as long as the context.
        self._abort_callback = llama_cpp.ggml_abort_callback(self._is_interrupted)
        self._can_be_interrupted = False

    def set_threads(self, threads: int) -> None:
        if threads < 1:
            raise EngineError(f"{threads} threads cannot compute anything")
        llama_cpp.llama_set_n_threads(self._open(), threads, threads)

    def interrupt(self) -> None:
        self._interrupted = True

    def memory(self) -> MemoryUse:
        return self._parts.memory

    def close(self) -> None:
        if self._context is None:
            return
        self._context = self._memory = None
        self._vocabulary.close()
        self._free()
        self._parts.free()

    @abstractmethod
    def _free(self) -> None:
        """Gives back what the engine has made beside its parts."""

    def _open(self) -> Any:
        if self._context is None:
            raise EngineError("the model has been unloaded")
        return self._context

    def _set_interruptible(self, wanted: bool) -> None:
        """llama.cpp asks whether it is interrupted at every node of its graph, hundreds of times a step: only where a
        step is long enough for that to pay."""
        if wanted == self._can_be_interrupted:
            return
        callback: Any = (
            self._abort_callback if wanted else cast("Any", ctypes).cast(None, llama_cpp.ggml_abort_callback)
        )
        cast("Any", llama_cpp).llama_set_abort_callback(self._open(), callback, None)
        self._can_be_interrupted = wanted

    def _is_interrupted(self, _: object) -> bool:
        return self._interrupted
