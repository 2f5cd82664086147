"""The light half of the llama.cpp backend: which files are its own, what it refuses, how much memory a model needs.

The daemon imports this module. It reads no file and imports no native library; the engine and the header reader are
named by strings and imported in child processes only.
"""

from __future__ import annotations

import platform
import re

from enclave_llama_cpp.memory import estimate
from enclave_llama_cpp.tensor_types import UNCOMPUTABLE_TENSOR_TYPES
from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.hookspecs import Backend, hookimpl
from enclaved.plugin.model import ModelHeader

ENCLAVE_API_VERSION = 1

LAYERS_MAX = 512
"""`LLAMA_MAX_LAYERS`: above it llama.cpp ends the process while it loads."""

_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_OFFERED = frozenset({"generate", "embed", "rerank"})
_NO_TOKENIZER = frozenset({"none", "no_vocab"})


class LlamaCppBackend(Backend):
    """Runs GGUF models with llama.cpp."""

    name = "llama_cpp"
    engine = "enclave_llama_cpp.engine:LlamaCppEngine"
    header_reader = "enclave_llama_cpp.gguf:read_header"
    vocabulary = "enclave_llama_cpp.vocabulary:open_vocabulary"
    preload = ("numpy", "llama_cpp", "enclave_llama_cpp.engine")
    process_bytes = 32 * 2**20
    """Anonymous memory of a worker with these imported: 27 MiB with Python 3.11 on x86-64."""
    packages = ("enclave_llama_cpp", "llama_cpp")

    def recognises(self, file_name: str) -> bool:
        return file_name.lower().endswith(".gguf") and _NO_MODEL.search(file_name) is None

    def refuse(self, header: ModelHeader) -> str | None:
        """What would end the worker's process, or can do nothing that the engine offers. Which architectures
        llama.cpp knows is its own affair: the load's error names it."""
        if header.format != "gguf":
            return f"is a {header.format} model, not a GGUF file"
        if header.weights_bytes == 0:
            return "has no tensors: it holds a vocabulary only" if header.vocabulary_size else "has no tensors"
        if header.vocabulary_size == 0 or header.tokenizer is None or header.tokenizer in _NO_TOKENIZER:
            return f"has no vocabulary, so it is no language model (architecture {header.architecture})"
        uncomputable = sorted(UNCOMPUTABLE_TENSOR_TYPES.intersection(header.tensor_types))
        if uncomputable:
            return f"has tensors of the type {', '.join(uncomputable)}, which llama.cpp cannot compute with"
        return _impossible_shape(header) or _of_no_use(header)

    def estimate(self, header: ModelHeader, placement: Placement) -> MemoryUse:
        return estimate(header, placement, platform.machine())


def _impossible_shape(header: ModelHeader) -> str | None:
    if not 1 <= header.block_count <= LAYERS_MAX:
        return f"claims {header.block_count:,} layers; llama.cpp takes 1 to {LAYERS_MAX}"
    if header.embedding_length < 1:
        return "does not say how wide its embeddings are"
    if header.head_count > header.embedding_length:
        return f"claims {header.head_count:,} attention heads for embeddings of {header.embedding_length:,}"
    for heads in set(header.head_count_kv):
        # 0 is a layer without attention.
        if heads > header.head_count or (heads and header.head_count % heads):
            return f"claims {heads:,} key/value heads for {header.head_count:,} attention heads"
    return None


def _of_no_use(header: ModelHeader) -> str | None:
    if _OFFERED.intersection(header.capabilities):
        return None
    use = " and ".join(header.capabilities) or "something else"
    return f"is a model for {use}; this backend generates text, makes vectors and ranks"


@hookimpl
def enclave_backends() -> list[Backend]:
    return [LlamaCppBackend()]
