"""What a model is, as sources find it and backends read it: entries, files and headers.

Sources make `ModelEntry`, header readers make `ModelHeader`; the daemon passes both on and never opens a model file
itself. Everything here is frozen and small, and turns into a plain map for the link between the processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType

ModelName = NewType("ModelName", str)
"""The canonical reference of a model, as `models.list` prints it."""

FileRole = Literal[
    "weights", "shard", "projector", "adapter", "draft", "tokenizer", "template", "config", "external_data"
]

HEADER_BYTES_MAX = 64 * 1024
"""The size of an encoded `ModelHeader` at most: it travels to the daemon, which keeps many of them."""


class HeaderError(Exception):
    """A file is no model, or its header is damaged or hostile. The text names the reason, for a person."""


class CutOffError(HeaderError):
    """The file ends before what its header says: it is damaged, or still being written."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a model on this machine."""

    role: FileRole
    path: str
    """Absolute path. The daemon opens it; a worker only ever sees the descriptor and `name`."""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class ModelHeader:
    """What a model's file says about itself: enough to predict its memory and to tell a person what it is."""

    format: str
    """`gguf`, `onnx`, `fake`."""
    architecture: str
    name: str | None = None
    parameters: int | None = None
    quantisation: str | None = None
    """The dominant tensor type, by bytes: `Q4_K`, `F32`."""
    context_length: int | None = None
    """Tokens the model was trained for."""
    block_count: int = 0
    embedding_length: int = 0
    head_count: int = 0
    head_count_kv: tuple[int, ...] = ()
    """Key/value heads of each block."""
    key_length: int = 0
    """Elements of one key head."""
    value_length: int = 0
    vocabulary_size: int = 0
    weights_bytes: int = 0
    """Bytes of all tensors as they lie in the file."""
    tensor_types: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes by tensor type."""
    sliding_window: int | None = None
    tokenizer: str | None = None
    template: str | None = None
    """The chat template's text, left out above 32 KiB (`template_bytes` still says how long it is)."""
    template_bytes: int = 0
    licence: str | None = None
    capabilities: tuple[str, ...] = ()
    """What it can do: `generate`, `chat`, `infill`, `embed`, `rerank`."""


@dataclass(frozen=True)
class ModelEntry:
    """A model as a source offers it."""

    name: ModelName
    source: str
    files: tuple[ModelFile, ...]
    backends: tuple[str, ...] = ()
    """Names of the only backends that can run it; empty: every backend that recognises the first file's name."""
    header: ModelHeader | None = None
    """Given by sources that know it without reading a file."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, "str | int | float | bool"])
    """Settings handed to the engine, such as the fake backend's knobs."""
    note: str | None = None
    """One sentence that a person should know before relying on this model."""
    also: tuple[str, ...] = ()
    """Other references that mean it, as long as they mean no other model as well. Of a source that is watched."""
