"""The engine contract: the narrowest interface that lets every backend run many sequences at once.

An engine is a backend's loaded model, living in a worker process. One thread calls it (only `interrupt` may come from
another). What all backends share stands above it in the worker: which sequences run, how prompts are cut into chunks,
stops, detokenising, the final draw.

A step is `forward(runs)`, which evaluates tokens and leaves logits behind for the runs that want them, followed by
`sample(rows)`, which turns these logits into one token each.

Embedding and ranking is `pool(texts)`, of engines that say so. Further abilities come as further methods with a default
that refuses, and a capability that says when to call them; so does `export`, of which the worker makes no use yet.
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
    cache_tokens: int | None = None
    """Tokens that all sequences may hold together, at least `context`; None: each its whole context."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that an instance needs (estimated) or holds (measured)."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    repacked_bytes: int = 0
    """A copy of weights in another layout, whether the first one stays or not."""
    other_bytes: int = 0
    devices: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes on each device, under the backend's name for it; empty: not told apart."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.repacked_bytes + self.other_bytes


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
    """Tokens that one `forward` or `pool` may carry."""
    cache_tokens: int = 0
    """Tokens that all sequences may hold together; 0: each its whole context."""
    chunk_tokens: int = 64
    """A chunk of a prompt costs least a token in multiples of so many."""
    can_generate: bool = True
    can_share: bool = False
    share_tokens: int = 1
    """A common beginning of fewer tokens is evaluated in less time than it is shared."""
    can_trim: bool = False
    can_shift: bool = False
    can_export: bool = False
    can_embed: bool = False
    can_rank: bool = False
    embedding_length: int = 0
    """Numbers in a vector that `pool` gives; 1 for a score."""
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

    `temperature` 0 is greedy: the likeliest after bias and penalties. With `mirostat`, the filters from `top_k` to
    `xtc_probability` don't apply, and temperature comes before it. The worker checks all bounds.
    """

    logit_bias: tuple[tuple[Token, float], ...] = ()
    """Added to the logits of these tokens; -inf forbids one."""
    repeat_penalty: float = 1.0
    """Divides the logits of tokens that came before (multiplies negative ones); 1 is off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that it came before; 0 is off."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that came before; 0 is off."""
    penalty_last_n: int = 64
    """Tokens that the three penalties look back on; -1: all."""
    dry_multiplier: float = 0.0
    """DRY: against repeating whole sequences of tokens; 0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    """Repeats of so many tokens are not yet penalised."""
    dry_last_n: int = -1
    """Tokens that DRY looks back on; -1: all."""
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts that no repeated sequence goes across."""
    top_k: int = 40
    """0 is off."""
    typical_p: float = 1.0
    """Locally typical sampling; 1 is off."""
    top_p: float = 0.95
    """1 is off."""
    min_p: float = 0.05
    """0 is off."""
    xtc_probability: float = 0.0
    """XTC: how often the likeliest tokens are left out; 0 is off."""
    xtc_threshold: float = 0.1
    """From which probability on a token counts as one of the likeliest; above 0.5 nothing is left out."""
    mirostat: int = 0
    """0 is off; the version, 1 or 2."""
    mirostat_tau: float = 5.0
    """The surprise aimed at, in bits."""
    mirostat_eta: float = 0.1
    """How fast it is steered towards."""
    temperature: float = 0.8

    @property
    def looks_back(self) -> bool:
        """Whether the tokens before matter."""
        penalises = self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        return (penalises and self.penalty_last_n != 0) or (self.dry_multiplier != 0 and self.dry_last_n != 0)


@dataclass(frozen=True)
class SampleRow:
    """One token to be chosen from the logits that the last `forward` left for a sequence."""

    sequence: SequenceId
    sampling: Sampling
    draw: float
    """0 ≤ draw < 1. The token is the first, in order of falling probability after the filters (ties: lower id first),
    at which the cumulated probability exceeds `draw`; so a seed means the same in every backend."""
    filter_draw: float = 0.0
    """0 ≤ filter_draw < 1, for a filter that leaves something to chance: XTC applies when it is below
    `xtc_probability`."""
    history: Sequence[Token] = ()
    """All tokens before, prompt and answer, oldest first; where `sampling.looks_back`."""
    mirostat_mu: float | None = None
    """Mirostat's state as the row before gave it back; None: the beginning, 2 × tau."""
    logprobs: int | None = None
    """How many of the likeliest tokens are to be told with their log probabilities; 0: only the chosen one's."""


@dataclass(frozen=True)
class Sampled:
    """A token that was chosen."""

    token: Token
    logprob: float | None = None
    """Natural logarithm of its probability as the model gave it, before all filters and temperature; where asked."""
    top: tuple[tuple[Token, float], ...] = ()
    """The likeliest tokens and their logprobs, likeliest first (ties: lower id first); as many as asked."""
    mirostat_mu: float | None = None


class Vocabulary(ABC):
    """Text to tokens and back. All methods may be called from any thread."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[Token]:
        """Tokens of `text`. `add_special`: with BOS/EOS as the model wants them; `parse_special`: markers in the text
        such as `<s>` become their token (never for text that came from a user)."""

    def encode_pair(self, query: str, document: str) -> list[Token]:
        """Tokens of the two texts as a ranking model was trained to see them.

        Raises EngineError for a vocabulary that knows no such form.
        """
        raise EngineError("this vocabulary knows no form for a query with a document")

    @abstractmethod
    def piece(self, token: Token) -> bytes:
        """The bytes a token stands for, perhaps part of a character; empty for control tokens.

        Raises ValueError for an id outside the vocabulary.
        """

    @abstractmethod
    def ends_generation(self, token: Token) -> bool:
        """Whether the model means 'finished' by this token. Raises ValueError for an id outside the vocabulary."""

    def close(self) -> None:  # noqa: B027 - most hold nothing of their own
        """Gives back what it holds, where it was opened on its own; an engine's is the engine's."""


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
    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        """One token for each row; its sequence must have wanted logits in the last `forward`.

        A sequence may have several rows. Raises EngineError when the model computed no usable numbers.
        """

    @abstractmethod
    def length(self, sequence: SequenceId) -> int:
        """Tokens that the sequence holds."""

    @abstractmethod
    def drop(self, sequence: SequenceId) -> None:
        """Empties a sequence."""

    @abstractmethod
    def trim(self, sequence: SequenceId, length: int) -> bool:
        """Cuts a sequence back to `length` tokens; False when this model cannot, the sequence is then unchanged."""

    def share(self, source: SequenceId, target: SequenceId, length: int) -> None:
        """Makes the empty `target` hold the first `length` tokens of `source`, without evaluating them; what happens to
        one later doesn't change the other. `source` stays, its logits too. Where `capabilities.can_share`.

        Raises NoRoomError, when it would take room that is not there, and EngineError.
        """
        raise EngineError("this engine's sequences share nothing")

    def shift(self, sequence: SequenceId, start: int, count: int) -> None:
        """Takes `count` tokens from position `start` out of a sequence; those behind move up. What they were computed
        from is not computed again, so what follows is near to, but not, what a fresh evaluation gives. Where
        `capabilities.can_shift`.

        Raises EngineError.
        """
        raise EngineError("this engine's sequences cannot be shifted")

    def pool(self, texts: Sequence[Sequence[Token]]) -> list[bytes]:
        """For each text its pooled vector, `capabilities.embedding_length` float32 numbers, little-endian, not
        normalised; of an engine that ranks, one number: how well the text's second part answers its first. At most
        `capabilities.sequences` texts, `capabilities.batch_tokens` tokens together, each 1 to `capabilities.context`.
        Where `capabilities.can_embed` or `can_rank`; no sequence is touched.

        Raises InterruptedStepError, EngineError.
        """
        raise EngineError("this engine makes no vectors")

    def export(self, sequence: SequenceId) -> bytes:
        """A sequence's state, from which `restore` makes it again. Where `capabilities.can_export`.

        Raises EngineError.
        """
        raise EngineError("this engine's sequences cannot be exported")

    def restore(self, sequence: SequenceId, state: bytes) -> bool:
        """Makes an empty sequence from what `export` gave, in this engine or another of the same model and placement;
        False when the state does not fit, the sequence is then empty. Where `capabilities.can_export`.

        Raises NoRoomError, EngineError.
        """
        raise EngineError("this engine's sequences cannot be restored")

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
