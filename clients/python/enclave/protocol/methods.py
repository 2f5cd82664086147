"""Every method of the daemon, typed once: parameters, result, chunks, who answers it and which right it needs.

The client builds bodies from these types, the daemon checks them, docs/protocol.md prints the table. Parameters
travel in a request's body, results in a result's, chunk values in a chunk's. What the daemon schedules by (model,
priority, max_tokens, …) stands in the request's header instead, see messages.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from enclave.protocol.codec import Bounds, decode, encode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.messages import COUNT_MAX, Chunk, Count, Name, Reference, Request, Result, Total
from enclave.protocol.packing import BODY_LIMITS, iterate, pack, unpack

T = TypeVar("T")

TokenId: TypeAlias = Annotated[int, Bounds(0, COUNT_MAX)]
JsonMap: TypeAlias = dict[str, object]
"""A map as in JSON, passed through unchecked but for depth and size."""

STOPS_MAX = 64
TEXTS_MAX = 65_536


class AnsweredBy(StrEnum):
    """Which process makes the answer; the daemon only passes bodies on for the last three."""

    DAEMON = "daemon"
    WORKER = "worker"
    INSPECTOR = "inspector"
    FETCHER = "fetcher"


class Right(StrEnum):
    """What a session must be allowed to do: run models, or change what others see."""

    USE = "use"
    MANAGE = "manage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """Neither parameters nor a result."""


# --- running a model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; what is unset comes from the preset, the model, then the built-in value."""

    temperature: Annotated[float, Bounds(0, 1000)] | None = None
    """0 takes the likeliest token."""
    top_k: Count | None = None
    top_p: Annotated[float, Bounds(0, 1)] | None = None
    min_p: Annotated[float, Bounds(0, 1)] | None = None
    seed: Annotated[int, Bounds(0, 2**64 - 1)] | None = None
    stop: Annotated[tuple[Annotated[str, Bounds(1, 4096)], ...], Bounds(0, STOPS_MAX)] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParams(Sampling):
    """A prompt as it is: no template, BOS as the vocabulary says. Tokens are taken without any change."""

    prompt: str | tuple[TokenId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """A piece of one choice's answer."""

    text: str = ""
    tokens: tuple[TokenId, ...] = ()
    choice: Count = 0
    reasoning: str | None = None
    tool_calls: tuple[JsonMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens counted; completion tokens over all choices."""

    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    """Of the prompt, taken from a cache instead of computed."""
    completion_tokens: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds measured in the worker, where it measured them."""

    tokenize_seconds: float | None = None
    prompt_seconds: float | None = None
    first_token_seconds: float | None = None
    """From the request's arrival in the worker to its first token."""
    decoding_seconds: float | None = None
    total_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """How it ended; the texts came in the chunks and are not repeated."""

    finish_reason: Name
    """stop, length, cancelled, … of the first choice."""
    finish_reasons: tuple[Name, ...] = ()
    """Of every choice, when there is more than one."""
    usage: Usage = Usage()
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatParams(Sampling):
    """A conversation, rendered by the model's template."""

    messages: Annotated[tuple[JsonMap, ...], Bounds(1, TEXTS_MAX)]
    tools: tuple[JsonMap, ...] = ()
    template: str | None = None
    template_arguments: JsonMap | None = None
    schema: JsonMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult:
    """How it ended, and what only the end knows of the message; its text came in the chunks."""

    finish_reason: Name
    finish_reasons: tuple[Name, ...] = ()
    message: JsonMap | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillParams(Sampling):
    """Text to be filled in between two others."""

    prefix: str
    suffix: str = ""
    order: Literal["auto", "psm", "spm"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixParams:
    """A named beginning to keep computed: messages or a prompt."""

    name: Name
    messages: tuple[JsonMap, ...] = ()
    prompt: str | tuple[TokenId, ...] | None = None
    tools: tuple[JsonMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillParams:
    """A prompt to compute now because it will probably be asked for."""

    prompt: str | tuple[TokenId, ...] | None = None
    messages: tuple[JsonMap, ...] = ()
    tools: tuple[JsonMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillResult:
    """What lies computed now."""

    usage: Usage = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedParams:
    """Texts to turn into vectors, in order."""

    texts: Annotated[tuple[str, ...], Bounds(1, TEXTS_MAX)]
    normalize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """The vectors are the result's first attachment: float32, little-endian, row by row."""

    count: Count
    dimensions: Count
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankParams:
    """Documents to order by how well they answer a query."""

    query: str
    documents: Annotated[tuple[str, ...], Bounds(1, TEXTS_MAX)]
    top: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One document: its place in the request and its score, higher is better."""

    index: Count
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """The documents, best first."""

    ranking: tuple[Ranked, ...] = ()
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeParams:
    """Text to cut into the model's tokens."""

    text: str
    special: bool = True
    """Whether the special tokens that the vocabulary asks for (BOS, EOS) are added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeResult:
    """Token ids."""

    tokens: tuple[TokenId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeParams:
    """Token ids to turn into text."""

    tokens: tuple[TokenId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeResult:
    """The text; bytes that are not UTF-8 become U+FFFD."""

    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderParams:
    """A conversation of which to show what the model would see."""

    messages: tuple[JsonMap, ...]
    tools: tuple[JsonMap, ...] = ()
    template: str | None = None
    template_arguments: JsonMap | None = None
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderResult:
    """The rendered prompt."""

    text: str = ""
    template: str | None = None
    """Where the template came from."""


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A catalog entry."""

    name: str
    source: str
    size: Total
    """Bytes of all its files."""
    backends: tuple[str, ...] = ()
    """Installed ones that can run it."""
    capabilities: tuple[str, ...] = ()
    note: str = ""
    path: str | None = None
    default: bool = False
    """Taken when a client names no model."""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsResult:
    """Every model in the catalog, by name."""

    models: tuple[ModelInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """One model, by reference."""

    model: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeaderInfo:
    """What the model's own header says of it; unset where it says nothing."""

    format: str | None = None
    architecture: str | None = None
    parameters: Total | None = None
    quantisation: str | None = None
    context_length: Total | None = None
    embedding_length: Total | None = None
    layers: Total | None = None
    vocabulary_size: Total | None = None
    template: bool | None = None
    """Whether it brings a chat template."""
    licence: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShow(ModelInfo):
    """A catalog entry with its header."""

    header: ModelHeaderInfo | None = None
    files: tuple[str, ...] = ()
    problem: str | None = None
    """Why the header could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasParams:
    """A second name for a model; without a model the alias goes."""

    alias: Name
    model: Reference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParams:
    """Words to look for in a source."""

    query: str
    source: Name | None = None
    limit: Annotated[int, Bounds(1, 1000)] = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """What was installed."""

    name: str
    size: Total = 0
    path: str | None = None


# --- instances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """Bytes of an instance: as estimated before the load, as measured after, and the measured parts."""

    estimated_bytes: Total | None = None
    measured_bytes: Total | None = None
    weights: Total | None = None
    kv: Total | None = None
    compute: Total | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WallsInfo:
    """How a worker is confined."""

    state: str
    """`full`, `partial` or `none`."""
    landlock_abi: int | None = None
    seccomp: bool | None = None
    missing: tuple[str, ...] = ()
    """The walls that this system could not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceInfo:
    """A worker and its model."""

    id: str
    model: str
    state: str
    """What it is: starting, loading, ready, unloading, …"""
    wanted: str
    """What it is to become."""
    backend: str
    device: str | None = None
    pid: Count | None = None
    memory: MemoryInfo = MemoryInfo()
    leases: Count = 0
    queued: Count = 0
    threads: Count | None = None
    context: Count | None = None
    """Tokens, of each sequence."""
    sequences: Count | None = None
    loaded_seconds: float | None = None
    """Since it became ready."""
    pinned: bool = False
    walls: WallsInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancesResult:
    """Every instance there is."""

    instances: tuple[InstanceInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParams:
    """A model to have ready; what is unset is left to the daemon and fits any instance that is there."""

    model: Reference
    backend: Name | None = None
    context: Annotated[int, Bounds(1, COUNT_MAX)] | None = None
    kv_type: Name | None = None
    flash_attention: bool | None = None
    threads: Annotated[int, Bounds(1, 65_536)] | None = None
    sequences: Annotated[int, Bounds(1, 65_536)] | None = None
    pin: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The instance that has the model now, and whether it had it before."""

    instance: InstanceInfo
    already_loaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadParams:
    """A model's instances, or one by its id."""

    model: Reference | None = None
    instance: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadResult:
    """The ids of the instances that are gone."""

    unloaded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PinParams:
    """Whether a model may be unloaded to make room."""

    model: Reference
    pinned: bool = True


# --- the daemon ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonInfo:
    """Which daemon answers."""

    version: str
    protocol: int
    pid: int
    endpoint: str
    """The ZeroMQ address."""
    home: str
    """The folder that holds its data."""
    started: float
    """Seconds since 1970."""
    executable: str | None = None
    python: str | None = None
    platform: str | None = None
    sessions: Count = 0
    outdated: str | None = None
    """Set when what is installed is newer than what runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthResult:
    """`ok`, or `degraded` with the problems."""

    status: str
    problems: tuple[str, ...] = ()
    uptime_seconds: float = 0.0
    instances: Count = 0
    queued: Count = 0
    running: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownParams:
    """How to end: by default, running requests may finish within the daemon's grace time."""

    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One installed plugin."""

    name: str
    version: str
    kinds: tuple[str, ...] = ()
    """backend, source, device, launcher."""
    state: str = "ready"
    """`ready` or `failed`."""
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsResult:
    """Every installed plugin, by name."""

    plugins: tuple[PluginInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyParams:
    """What to tell the story of: a request (`session/id` as the daemon prints it), a model, or whatever came last."""

    request: Name | None = None
    model: Reference | None = None
    limit: Annotated[int, Bounds(1, 10_000)] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyRecord:
    """One thing that happened or was decided."""

    number: Total
    at: float
    """Seconds since 1970."""
    kind: str
    """`event` or `action`, a space, and its name."""
    cause: Total | None = None
    """The number of the record that brought it about."""
    text: str = ""
    """For a person."""
    data: JsonMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyResult:
    """The story, oldest first."""

    records: tuple[WhyRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsParams:
    """Topics to hear of: models, instances, downloads, hardware; none means all."""

    topics: tuple[Literal["models", "instances", "downloads", "hardware"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventChunk:
    """One thing that happened, told while it is news."""

    topic: str
    name: str
    at: float
    """Seconds since 1970."""
    data: JsonMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigParams:
    """A setting by its name; with a value it is set."""

    name: Name | None = None
    value: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadParams:
    """A download by its id."""

    download: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of a method whose exact types come with it."""

    rows: tuple[JsonMap, ...] = ()


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    params: type[Any]
    result: type[Any]
    chunk: type[Any] | None
    """The type of each value in a chunk's body; None for a method that answers with a result only."""
    answered_by: AnsweredBy
    right: Right
    built: bool = True
    """False: the daemon answers `unsupported` for now."""
    wants_model: bool = False
    """Whether the request's header names a model; without one, the daemon's default model is meant."""
    progresses: bool = False
    """Whether `progress` may come before the answer."""


def _worker(name: str, params: type[Any], result: type[Any], chunk: type[Any] | None, built: bool = False) -> Method:
    return Method(
        name, params, result, chunk, AnsweredBy.WORKER, Right.USE, built=built, wants_model=True, progresses=True
    )


def _daemon(name: str, params: type[Any], result: type[Any], right: Right = Right.USE, built: bool = False) -> Method:
    return Method(name, params, result, None, AnsweredBy.DAEMON, right, built=built)


_ROWS = (
    _daemon("daemon.info", Empty, DaemonInfo, built=True),
    _daemon("daemon.health", Empty, HealthResult, built=True),
    _daemon("daemon.metrics", Empty, Table),
    _daemon("daemon.shutdown", ShutdownParams, Empty, Right.MANAGE, built=True),
    _daemon("models.list", Empty, ModelsResult, built=True),
    Method("models.show", ModelParams, ModelShow, None, AnsweredBy.INSPECTOR, Right.USE),
    Method("models.search", SearchParams, Table, None, AnsweredBy.FETCHER, Right.USE, built=False),
    Method(
        "models.pull", ModelParams, PullResult, None, AnsweredBy.FETCHER, Right.MANAGE, built=False, progresses=True
    ),
    _daemon("models.remove", ModelParams, Empty, Right.MANAGE),
    _daemon("models.alias", AliasParams, Empty, Right.MANAGE),
    _daemon("instances.list", Empty, InstancesResult, built=True),
    Method("instances.load", LoadParams, LoadResult, None, AnsweredBy.DAEMON, Right.MANAGE, progresses=True),
    _daemon("instances.unload", UnloadParams, UnloadResult, Right.MANAGE, built=True),
    _daemon("instances.pin", PinParams, Empty, Right.MANAGE),
    _worker("generate", GenerateParams, GenerateResult, TextChunk, built=True),
    _worker("chat", ChatParams, ChatResult, TextChunk),
    _worker("infill", InfillParams, GenerateResult, TextChunk),
    _worker("prefix", PrefixParams, PrefillResult, None),
    _worker("prefill", PrefillParams, PrefillResult, None),
    _worker("embed", EmbedParams, EmbedResult, None),
    _worker("rerank", RerankParams, RerankResult, None),
    Method(
        "tokenize",
        TokenizeParams,
        TokenizeResult,
        None,
        AnsweredBy.INSPECTOR,
        Right.USE,
        built=False,
        wants_model=True,
    ),
    Method(
        "detokenize",
        DetokenizeParams,
        DetokenizeResult,
        None,
        AnsweredBy.INSPECTOR,
        Right.USE,
        built=False,
        wants_model=True,
    ),
    Method("render", RenderParams, RenderResult, None, AnsweredBy.INSPECTOR, Right.USE, built=False, wants_model=True),
    _daemon("downloads.list", Empty, Table),
    _daemon("downloads.cancel", DownloadParams, Empty, Right.MANAGE),
    _daemon("hardware.show", Empty, Table),
    _daemon("plugins.list", Empty, PluginsResult, built=True),
    _daemon("privacy.report", Empty, Table),
    _daemon("scheduler.why", WhyParams, WhyResult, built=True),
    Method("events.subscribe", EventsParams, Empty, EventChunk, AnsweredBy.DAEMON, Right.USE, built=False),
    _daemon("config.get", ConfigParams, Table),
    _daemon("config.set", ConfigParams, Empty, Right.MANAGE),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""Every method, in the order of docs/protocol.md."""


def method(name: str) -> Method:
    """The row of a method; raises RemoteProtocolError (`unknown_method`, the session goes on)."""
    row = METHODS.get(name)
    if row is None:
        raise RemoteProtocolError(
            f"there is no method {name[:64]!r}", code="unknown_method", field="method", fatal=False
        )
    return row


def check_request(request: Request) -> Method:
    """The row of a request's method, after what its header alone can show to be wrong.

    Raises RemoteProtocolError about this request (not fatal): unknown_method, unsupported.
    """
    try:
        row = method(request.method)
        if not row.built:
            raise RemoteProtocolError(f"{row.name} is not built yet", code="unsupported", field="method")
        return row
    except RemoteProtocolError as error:
        raise error.about(request.id) from error


def read_params(request: Request) -> Any:
    """The typed parameters in a request's body; an empty body is an empty map.

    Only whoever answers the method calls this. Raises RemoteProtocolError about this request (not fatal):
    unknown_method, or bad_request naming the field.
    """
    try:
        row = method(request.method)
        return decode(row.params, _read_body(request.body))
    except RemoteProtocolError as error:
        raise error.about(request.id) from error


def read_result(name: str, result: Result) -> Any:
    """The typed result of a method; raises RemoteProtocolError."""
    return decode(method(name).result, _read_body(result.body))


def read_chunks(name: str, chunk: Chunk) -> Iterator[Any]:
    """The typed values of a chunk's body; raises RemoteProtocolError, also when they are not as many as announced."""
    kind = method(name).chunk
    if kind is None:
        raise RemoteProtocolError(f"{name} has no chunks")
    number = 0
    for value in iterate(chunk.body, BODY_LIMITS, "body"):
        number += 1
        yield decode(kind, value)
    if number != chunk.count:
        raise RemoteProtocolError(f"count: {chunk.count} values announced, {number} sent", field="count")


def write_body(value: object) -> bytes:
    """A params, result or chunk object as one MessagePack value; raises LocalProtocolError."""
    return pack(encode(value))


def _read_body(body: bytes) -> object:
    return unpack(body, BODY_LIMITS, "body") if body else dict[str, object]()
