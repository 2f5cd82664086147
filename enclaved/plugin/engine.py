"""The engine contract: the narrowest interface that lets every backend run many sequences at once.

An engine is a backend's loaded model, living in a worker process. One thread calls it (only `interrupt` may come from
another). What all backends share stands above it in the worker: which sequences run, how prompts are cut into chunks,
stops, detokenising, the final draw.

A step is `forward(runs)`, which evaluates tokens and leaves logits behind for the runs that want them, followed by
`sample(rows)`, which turns these logits into one token each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType

from enclaved.plugin.model import FileRole, ModelHeader

SequenceId = NewType("SequenceId", int)
"""0 ≤ id < `Capabilities.sequences`; the worker gives ids out and takes them back with `drop`."""

Token = NewType("Token", int)


class EngineError(Exception):
    """The engine cannot do what was asked. The text is for a person; the engine stays usable unless it says not."""


class LoadError(EngineError):
    """The model cannot be loaded. `out_of_memory` tells a lack of memory from a bad file."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class NoRoomError(EngineError):
    """`forward` found no free cells; nothing was evaluated and every sequence is as it was."""


class InterruptedStepError(EngineError):
    """`forward` was interrupted. Ask `length` of each sequence of the step for what is left of it.

    All logits are gone, so a sequence that wanted some lacks at least the last token of its run: evaluating what it
    lacks brings them.
    """


@dataclass(frozen=True)
class OpenFile:
    """A file of the model, handed over as an open descriptor. The engine closes none of them."""

    role: FileRole
    name: str
    descriptor: int
    size_bytes: int


@dataclass(frozen=True)
class Placement:
    """What the scheduler grants an instance."""

    device: str
    context: int
    """Tokens that one sequence may hold, prompt and answer together."""
    sequences: int
    """Sequences that may run at once."""
    threads: int
    kv_type: Literal["f32", "f16", "q8_0"] = "f16"
    flash_attention: bool | None = None
    """None: as the backend thinks best."""
    gpu_layers: int = 0


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that an instance needs (estimated) or holds (measured)."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    other_bytes: int = 0
    """Whatever else, such as a second copy of weights in another layout."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.other_bytes


@dataclass(frozen=True)
class LoadRequest:
    """Everything an engine gets to load its model. `header` is what the backend's own header reader made."""

    model: str
    files: Sequence[OpenFile]
    header: ModelHeader
    placement: Placement
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, "str | int | float | bool"])


@dataclass(frozen=True)
class Capabilities:
    """What this loaded model can do. Limits are those really in force, which may be less than asked for."""

    sequences: int
    context: int
    """Tokens that one sequence may hold."""
    batch_tokens: int
    """Tokens that one `forward` may carry."""
    can_share: bool = False
    can_trim: bool = False
    can_shift: bool = False
    can_export: bool = False
    can_embed: bool = False
    threads: Literal["exact", "affinity", "fixed"] = "fixed"


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one sequence to be evaluated in a step: a chunk of its prompt, or its newest token."""

    sequence: SequenceId
    position: int
    """Position of the first token; must be exactly the sequence's length so far."""
    tokens: Sequence[Token]
    wants_logits: bool
    """Whether the logits after the last token are wanted."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Filters apply in the order of the fields, temperature last.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off.
    """

    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    temperature: float = 0.8


@dataclass(frozen=True)
class SampleRow:
    """One token to be chosen from the logits that the last `forward` left for a sequence."""

    sequence: SequenceId
    sampling: Sampling
    draw: float
    """0 ≤ draw < 1. The token is the first, in order of falling probability after the filters (ties: lower id first),
    at which the cumulated probability exceeds `draw`; so a seed means the same in every backend."""


class Vocabulary(ABC):
    """Text to tokens and back. All methods may be called from any thread."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        """Tokens of `text`. `add_special`: with BOS/EOS as the model wants them; `parse_special`: markers in the text
        such as `<s>` become their token (never for text that came from a user)."""

    @abstractmethod
    def piece(self, token: Token) -> bytes:
        """The bytes a token stands for, perhaps part of a character; empty for control tokens.

        Raises ValueError for an id outside the vocabulary.
        """

    @abstractmethod
    def ends_generation(self, token: Token) -> bool:
        """Whether the model means 'finished' by this token. Raises ValueError for an id outside the vocabulary."""


class Engine(ABC):
    """A loaded model."""

    vocabulary: Vocabulary
    capabilities: Capabilities

    @classmethod
    @abstractmethod
    def load(cls, request: LoadRequest, progress: Callable[[float], bool]) -> Engine:
        """Loads the model. `progress` gets the fraction done and returns False to cancel (then: LoadError).

        Raises LoadError.
        """

    def read_body(self, body: bytes) -> Sequence[Token] | None:
        """The prompt's tokens, for a backend whose requests have a body of its own making: it gets the very bytes that
        the client sent, and is then asked for the likeliest token each time. None, which is what it returns unless
        overridden: the body is read as the method says.

        Raises EngineError for a body that makes no sense.
        """
        return None

    @abstractmethod
    def forward(self, runs: Sequence[Run]) -> None:
        """Evaluates all tokens of all runs, at most `capabilities.batch_tokens`, at most one run a sequence.

        Raises NoRoomError, InterruptedStepError, EngineError.
        """

    @abstractmethod
    def sample(self, rows: Sequence[SampleRow]) -> list[Token]:
        """One token for each row; its sequence must have wanted logits in the last `forward`."""

    @abstractmethod
    def length(self, sequence: SequenceId) -> int:
        """Tokens that the sequence holds."""

    @abstractmethod
    def drop(self, sequence: SequenceId) -> None:
        """Empties a sequence."""

    @abstractmethod
    def trim(self, sequence: SequenceId, length: int) -> bool:
        """Cuts a sequence back to `length` tokens; False when this model cannot, the sequence is then unchanged."""

    @abstractmethod
    def set_threads(self, threads: int) -> None:
        """Compute threads from the next step on, where `capabilities.threads` is not `fixed`."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ends a running `forward` early, where the backend can. May be called from any thread.

        When none is running, it may end the next one at once, or do nothing.
        """

    @abstractmethod
    def memory(self) -> MemoryUse:
        """What this engine holds, as the backend itself counts it."""

    @abstractmethod
    def close(self) -> None:
        """Gives everything back. The engine must not be used afterwards; closing twice is harmless."""
