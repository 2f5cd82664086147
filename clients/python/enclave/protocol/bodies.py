"""What is in bodies: the parameters, results and chunk values of every method, typed.

The client builds bodies from these types (and from those of folder_bodies.py), whoever answers a method checks them,
docs/protocol.md prints them. What the daemon schedules by (model, …) is in the request's header, see messages.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from enclave.protocol.codec import Bounds
from enclave.protocol.messages import COUNT_MAX, REFERENCE_LENGTH_MAX, Count, Name, Reference, Total
from enclave.protocol.records import record

TokenId: TypeAlias = Annotated[int, Bounds(0, COUNT_MAX)]
JsonMap: TypeAlias = dict[str, object]
"""A map as in JSON, passed through unchecked but for depth and size."""

STOPS_MAX = 64
BIASES_MAX = 4096
LOGPROBS_MAX = 100
LAST_N_MAX = 2**20
TEXTS_MAX = 65_536


@record
class Empty:
    """Neither parameters nor a result."""


# --- running a model -------------------------------------------------------------------------------------------------


@record
class TokenBias:
    """What is added to one token's logit."""

    token: TokenId
    bias: Annotated[float, Bounds(-1000, 1000)] | None = None
    """Unset: the token never comes."""


@record
class Sampling:
    """How tokens are drawn; what is unset comes from the preset, the model, then the built-in value."""

    temperature: Annotated[float, Bounds(0, 1000)] | None = None
    """0 takes the likeliest token."""
    top_k: Count | None = None
    """Draw from so many of the likeliest; 0 is off."""
    top_p: Annotated[float, Bounds(0, 1)] | None = None
    """Draw from the likeliest that together make up this share; 1 is off."""
    min_p: Annotated[float, Bounds(0, 1)] | None = None
    """Leave out what is less than this times as likely as the likeliest; 0 is off."""
    typical_p: Annotated[float, Bounds(0, 1)] | None = None
    """Draw from the tokens of most typical surprise that together make up this share; 1 is off."""
    repeat_penalty: Annotated[float, Bounds(0.01, 100)] | None = None
    """Divides the logits of tokens that came before; 1 is off."""
    frequency_penalty: Annotated[float, Bounds(-100, 100)] | None = None
    """Taken off a token's logit for each time it came before; 0 is off."""
    presence_penalty: Annotated[float, Bounds(-100, 100)] | None = None
    """Taken off the logit of each token that came before; 0 is off."""
    penalty_last_n: Annotated[int, Bounds(-1, LAST_N_MAX)] | None = None
    """Tokens, prompt and answer, that the penalties look back on; -1: all, 0: none."""
    dry_multiplier: Annotated[float, Bounds(0, 100)] | None = None
    """DRY, against repeated sequences of tokens: how hard; 0 is off."""
    dry_base: Annotated[float, Bounds(1, 100)] | None = None
    """How much harder for each token by which a repeated sequence is longer."""
    dry_allowed_length: Annotated[int, Bounds(1, LAST_N_MAX)] | None = None
    """Repeated sequences of up to so many tokens are let be."""
    dry_last_n: Annotated[int, Bounds(-1, LAST_N_MAX)] | None = None
    """Tokens that DRY looks back on; -1: all, 0: none."""
    dry_breakers: Annotated[tuple[Annotated[str, Bounds(1, 40)], ...], Bounds(0, 16)] | None = None
    """Texts that no repeated sequence goes across."""
    xtc_probability: Annotated[float, Bounds(0, 1)] | None = None
    """XTC: how often all but the least likely of the likeliest tokens are left out; 0 is off."""
    xtc_threshold: Annotated[float, Bounds(0, 1)] | None = None
    """From which probability on a token counts as one of the likeliest."""
    mirostat: Literal[0, 1, 2] | None = None
    """Steer the surprise instead of filtering by top_k, top_p, min_p, typical_p and XTC: which version; 0 is off."""
    mirostat_tau: Annotated[float, Bounds(0, 100)] | None = None
    """The surprise aimed at, in bits."""
    mirostat_eta: Annotated[float, Bounds(0, 1)] | None = None
    """How fast it is steered towards."""
    logit_bias: Annotated[tuple[TokenBias, ...], Bounds(0, BIASES_MAX)] = ()
    """Added to the logits of tokens before anything else."""
    logprobs: Annotated[int, Bounds(0, LOGPROBS_MAX)] | None = None
    """Tell each token's log probability, and those of so many of the likeliest in its place."""
    seed: Annotated[int, Bounds(0, 2**64 - 1)] | None = None
    """The same seed draws the same answer where the logits are the same; unset: a random one."""
    stop: Annotated[tuple[Annotated[str, Bounds(1, 4096)], ...], Bounds(0, STOPS_MAX)] = ()
    """Texts at which the answer ends; none of them is part of it."""
    ignore_eos: bool = False
    """Go on where the model would end."""


@record
class GenerateParams(Sampling):
    """A prompt as it is: no template, BOS as the vocabulary says. Tokens are taken without any change."""

    prompt: str | tuple[TokenId, ...]
    """Text, or token ids."""
    overflow: Literal["error", "truncate", "shift"] = "error"
    """For what the context does not hold. `error`: too long a prompt is refused, and an answer ends where the context
    does. `truncate`: of too long a prompt, the oldest tokens after the first `keep` are left out. `shift`: besides, an
    answer goes on when the context is full, without the oldest half of what follows the first `keep` tokens."""
    keep: Count = 0
    """Tokens at the prompt's beginning that are never left out."""


@record
class TokenLogprob:
    """A token and the natural logarithm of its probability, as the model gave it before any filter."""

    token: TokenId
    logprob: float
    text: str = ""
    """Its bytes as text; U+FFFD for what is no whole character."""


@record
class TokenChoice(TokenLogprob):
    """The token that was chosen, and the likeliest in its place."""

    top: tuple[TokenLogprob, ...] = ()
    """Likeliest first, as many as were asked for."""


@record
class TextChunk:
    """A piece of one choice's answer."""

    text: str = ""
    """Whole characters only."""
    tokens: tuple[TokenId, ...] = ()
    """Their ids, as far as they belong to this piece."""
    choice: Count = 0
    """Which of the `choices`, from 0."""
    reasoning: str | None = None
    """Text of the model's reasoning, apart from the answer."""
    logprobs: tuple[TokenChoice, ...] = ()
    """Of these `tokens`, where asked for."""
    tool_calls: tuple[JsonMap, ...] = ()
    """Pieces of calls."""


@record
class Usage:
    """Tokens counted; completion tokens over all choices."""

    prompt_tokens: Count = 0
    """As the vocabulary counts them, special ones too."""
    cached_tokens: Count = 0
    """Of the prompt, taken from a cache instead of computed."""
    completion_tokens: Count = 0
    """Of the answers; the one that ended it is not counted."""
    uncached_reason: str | None = None
    """Why the rest of the prompt was not taken from a cache."""
    left_out_tokens: Count = 0
    """Of the prompt, because the request allowed it; not among the `prompt_tokens`."""
    shifted_tokens: Count = 0
    """Dropped from the context while the answer was made, over all choices, because the request allowed it."""


@record
class Timings:
    """Seconds measured in the worker, where it measured them."""

    tokenize_seconds: float | None = None
    prompt_seconds: float | None = None
    """Evaluating the prompt."""
    first_token_seconds: float | None = None
    """From the request's arrival in the worker to its first token."""
    decoding_seconds: float | None = None
    """Making the answer."""
    total_seconds: float | None = None
    """From the request's arrival in the worker to its end."""


@record
class GenerateResult:
    """How it ended; the texts came in the chunks and are not repeated."""

    finish_reason: Name
    """stop, length, cancelled, … of the first choice."""
    finish_reasons: tuple[Name, ...] = ()
    """Of every choice, when there is more than one."""
    template: str | None = None
    """What the prompt was rendered with; unset when it was taken as it is."""
    seed: Annotated[int, Bounds(0, 2**64 - 1)] | None = None
    """What the answer was drawn with; asking with it again draws the same where the logits are the same."""
    context_full: bool = False
    """Whether an answer ended, by `length`, because the context was full before its `max_tokens`."""
    usage: Usage = Usage()
    timings: Timings = Timings()


@record
class ChatParams(Sampling):
    """A conversation, rendered by the model's template."""

    messages: Annotated[tuple[JsonMap, ...], Bounds(1, TEXTS_MAX)]
    """Maps with `role` and `content`, as templates take them."""
    tools: tuple[JsonMap, ...] = ()
    """Functions that may be called, as JSON schemas."""
    template: str | None = None
    """Instead of the model's own."""
    template_arguments: JsonMap | None = None
    """Further variables of the template."""
    schema: JsonMap | None = None
    """JSON schema that the answer must fit."""


@record
class ChatResult:
    """How it ended, and what only the end knows of the message; its text came in the chunks."""

    finish_reason: Name
    """stop, length, tool_calls, cancelled, … of the first choice."""
    finish_reasons: tuple[Name, ...] = ()
    """Of every choice, when there is more than one."""
    template: str | None = None
    """What the conversation was rendered with."""
    message: JsonMap | None = None
    """`role`, `content`, `tool_calls`, as far as the chunks did not bring it."""
    usage: Usage = Usage()
    timings: Timings = Timings()


@record
class InfillParams(Sampling):
    """Text to be filled in between two others."""

    prefix: str
    """What stands before."""
    suffix: str = ""
    """What stands after."""
    order: Literal["auto", "psm", "spm"] = "auto"
    """Which of the two the model sees first; `auto`: what it was measured to be best at."""


@record
class PrefixParams:
    """A named beginning to keep computed: messages or a prompt."""

    name: Name
    """For requests to name it by, in their header."""
    messages: tuple[JsonMap, ...] = ()
    """A conversation; or `prompt`."""
    prompt: str | tuple[TokenId, ...] | None = None
    """A prompt as it is; or `messages`."""
    tools: tuple[JsonMap, ...] = ()
    """Of the conversation."""


@record
class PrefillParams:
    """A prompt to compute now because it will probably be asked for."""

    prompt: str | tuple[TokenId, ...] | None = None
    """A prompt as it is; or `messages`."""
    messages: tuple[JsonMap, ...] = ()
    """A conversation; or `prompt`."""
    tools: tuple[JsonMap, ...] = ()
    """Of the conversation."""


@record
class PrefillResult:
    """What lies computed now."""

    usage: Usage = Usage()


@record
class EmbedParams:
    """Texts to turn into vectors, in order."""

    texts: Annotated[tuple[str, ...], Bounds(1, TEXTS_MAX)]
    """One vector each."""
    normalize: bool = True
    """Make each vector one of length 1."""
    truncate_to: Annotated[int, Bounds(1, COUNT_MAX)] | None = None
    """Cut longer texts to so many tokens, special ones counted, or to what the model takes; unset: a text that is
    longer than that is an error."""


@record
class EmbedResult:
    """The vectors are the result's first attachment: float32, little-endian, row by row."""

    count: Count
    """Vectors."""
    dimensions: Count
    """Of each."""
    truncated: tuple[Count, ...] = ()
    """The texts, from 0, that were cut."""
    usage: Usage = Usage()
    timings: Timings = Timings()


@record
class RerankParams:
    """Documents to order by how well they answer a query."""

    query: str
    """What is asked."""
    documents: Annotated[tuple[str, ...], Bounds(1, TEXTS_MAX)]
    """What may answer it."""
    top: Count | None = None
    """Only so many of the best; unset: all."""
    truncate_to: Annotated[int, Bounds(1, COUNT_MAX)] | None = None
    """Cut documents that are, with the query, longer than so many tokens; unset: one that is longer than the model
    takes is an error."""


@record
class Ranked:
    """One document: its place in the request and its score, higher is better."""

    index: Count
    """In `documents`, from 0."""
    score: float
    """Comparable within one ranking."""


@record
class RerankResult:
    """The documents, best first."""

    ranking: tuple[Ranked, ...] = ()
    truncated: tuple[Count, ...] = ()
    """The documents, from 0, that were cut."""
    usage: Usage = Usage()
    timings: Timings = Timings()


@record
class TokenizeParams:
    """Text to cut into the model's tokens."""

    text: str
    special: bool = True
    """Whether the special tokens that the vocabulary asks for (BOS, EOS) are added."""
    parse_special: bool = False
    """Whether markers in the text, such as `<s>`, become their token, instead of being text."""


@record
class TokenizeResult:
    """Token ids."""

    tokens: tuple[TokenId, ...] = ()


@record
class DetokenizeParams:
    """Token ids to turn into text."""

    tokens: tuple[TokenId, ...]


@record
class DetokenizeResult:
    """The text; bytes that are not UTF-8 become U+FFFD."""

    text: str = ""


@record
class RenderParams:
    """A conversation of which to show what the model would see."""

    messages: tuple[JsonMap, ...]
    """As in `chat`."""
    tools: tuple[JsonMap, ...] = ()
    """As in `chat`."""
    template: str | None = None
    """Instead of the model's own."""
    template_arguments: JsonMap | None = None
    """Further variables of the template."""
    add_generation_prompt: bool = True
    """Whether the beginning of an answer follows."""


@record
class RenderResult:
    """The rendered prompt."""

    text: str = ""
    template: str | None = None
    """Where the template came from."""


# --- models ----------------------------------------------------------------------------------------------------------


@record
class ModelInfo:
    """A catalog entry."""

    name: str
    source: str
    """The plugin that knows it."""
    size: Total
    """Bytes of all its files."""
    backends: tuple[str, ...] = ()
    """Installed ones that can run it."""
    capabilities: tuple[str, ...] = ()
    """generate, chat, embed, … as far as its header tells."""
    note: str = ""
    """For people."""
    path: str | None = None
    """Of its first file."""
    default: bool = False
    """Taken when a client names no model."""
    aliases: tuple[str, ...] = ()


@record
class ModelsParams:
    """A page of the catalog."""

    after: Annotated[str, Bounds(0, REFERENCE_LENGTH_MAX)] = ""
    """The name behind which it begins; unset: at the beginning."""
    limit: Annotated[int, Bounds(1, 1000)] = 100
    """Models at most."""


@record
class ModelsResult:
    """Models of the catalog, by name."""

    models: tuple[ModelInfo, ...] = ()
    next: str | None = None
    """What `after` has to be for the next page; unset on the last one."""
    total: Count = 0
    """Models in all."""


@record
class ModelParams:
    """One model, by reference."""

    model: Reference


@record
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


@record
class ModelShow(ModelInfo):
    """A catalog entry with its header."""

    header: ModelHeaderInfo | None = None
    files: tuple[str, ...] = ()
    problem: str | None = None
    """Why the header could not be read."""


@record
class AliasParams:
    """A second name for a model; without a model the alias goes."""

    alias: Name
    model: Reference | None = None


@record
class SearchParams:
    """Words to look for in a source."""

    query: str
    source: Name | None = None
    limit: Annotated[int, Bounds(1, 1000)] = 20


@record
class PullResult:
    """What was installed."""

    name: str
    size: Total = 0
    """Bytes of all its files."""
    path: str | None = None


# --- instances -------------------------------------------------------------------------------------------------------


@record
class MemoryInfo:
    """Bytes of an instance: as estimated before the load, as measured after, and the measured parts."""

    estimated_bytes: Total | None = None
    measured_bytes: Total | None = None
    weights: Total | None = None
    repacked: Total | None = None
    """Weights in the layout that this machine computes with, whether the first one stayed or not."""
    kv: Total | None = None
    compute: Total | None = None
    devices: dict[str, int] | None = None
    """The measured bytes on each device, under the backend's name for it."""


@record
class WallsInfo:
    """How a worker is confined."""

    state: str
    """`full`, `partial` or `none`."""
    landlock_abi: int | None = None
    seccomp: bool | None = None
    missing: tuple[str, ...] = ()
    """The walls that this system could not give."""


@record
class AskerInfo:
    """A client with requests on an instance."""

    session: str
    """Before the slash in a request's id, as `enclave why` prints it."""
    name: str
    """As it called itself."""
    pid: Count | None = None
    """As the system vouches for it, where it does; so with the next one."""
    program: str | None = None
    """The executable."""
    running: Count = 0
    queued: Count = 0


@record
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
    """Requests that run on it."""
    paused: Count = 0
    """Of these, those that rest because their client does not read."""
    queued: Count = 0
    """Requests that wait for its model."""
    threads: Count | None = None
    """For computing, as granted now."""
    context: Count | None = None
    """Tokens, of each sequence."""
    sequences: Count | None = None
    loaded_seconds: float | None = None
    """Since it became ready."""
    pinned: bool = False
    """Whether it is never unloaded to make room."""
    walls: WallsInfo | None = None
    askers: tuple[AskerInfo, ...] = ()
    """Whose requests run on it, or wait for its model."""


@record
class InstancesResult:
    """Every instance there is."""

    instances: tuple[InstanceInfo, ...] = ()


@record
class LoadParams:
    """A model to have ready; what is unset is left to the daemon and fits any instance that is there."""

    model: Reference
    backend: Name | None = None
    context: Annotated[int, Bounds(1, COUNT_MAX)] | None = None
    """Tokens that a prompt and its answer may take."""
    kv_type: Name | None = None
    """Of the key/value cache: `f32`, `f16` or `q8_0`."""
    flash_attention: bool | None = None
    """Demanded or forbidden; unset: as the backend thinks best."""
    threads: Annotated[int, Bounds(1, 65_536)] | None = None
    """For computing, at most."""
    sequences: Annotated[int, Bounds(1, 65_536)] | None = None
    """Requests that run at once."""
    pin: bool | None = None


@record
class LoadResult:
    """The instance that has the model now, and whether it had it before."""

    instance: InstanceInfo
    already_loaded: bool = False
    """Whether nothing had to be done."""


@record
class UnloadParams:
    """A model's instances, or one by its id."""

    model: Reference | None = None
    instance: Name | None = None


@record
class UnloadResult:
    """The ids of the instances that are gone."""

    unloaded: tuple[str, ...] = ()
    """They are gone when this comes."""


@record
class PinParams:
    """Whether a model may be unloaded to make room."""

    model: Reference
    pinned: bool = True


# --- the daemon ------------------------------------------------------------------------------------------------------


@record
class DaemonInfo:
    """Which daemon answers."""

    version: str
    """Of the program."""
    protocol: int
    """The newest version of this protocol that it speaks."""
    pid: int
    endpoint: str
    """The ZeroMQ address."""
    home: str
    """The folder that holds its data."""
    started: float
    """Seconds since 1970."""
    executable: str | None = None
    """What starts it again."""
    python: str | None = None
    platform: str | None = None
    sessions: Count = 0
    """Open ones."""
    outdated: str | None = None
    """Set when what is installed is newer than what runs."""


@record
class HealthResult:
    """`ok`, or `degraded` with the problems."""

    status: str
    """`ok` or `degraded`."""
    problems: tuple[str, ...] = ()
    """A sentence each."""
    uptime_seconds: float = 0.0
    instances: Count = 0
    queued: Count = 0
    """Requests that wait."""
    running: Count = 0
    """Requests that run."""


@record
class ShutdownParams:
    """How to end: by default, running requests may finish within the daemon's grace time."""

    now: bool = False
    """Cut running requests off."""


@record
class PluginInfo:
    """One installed plugin."""

    name: str
    version: str
    kinds: tuple[str, ...] = ()
    """backend, source, device, launcher."""
    state: str = "ready"
    """`ready` or `failed`."""
    problem: str | None = None
    """Why it failed."""


@record
class PluginsResult:
    """Every installed plugin, by name."""

    plugins: tuple[PluginInfo, ...] = ()


@record
class WhyParams:
    """What to tell the story of: a request (`session/id` as the daemon prints it), a model, or whatever came last."""

    request: Name | None = None
    model: Reference | None = None
    limit: Annotated[int, Bounds(1, 10_000)] = 100
    """Records at most, the newest."""


@record
class WhyRecord:
    """One thing that happened or was decided."""

    number: Total
    """Counted from the daemon's start."""
    at: float
    """Seconds since 1970."""
    kind: str
    """`event` or `action`, a space, and its name."""
    cause: Total | None = None
    """The number of the record that brought it about."""
    text: str = ""
    """For a person."""
    data: JsonMap | None = None
    """The fields of what was said."""


@record
class WhyResult:
    """The story, oldest first."""

    records: tuple[WhyRecord, ...] = ()


Topic: TypeAlias = Literal["models", "instances", "downloads", "hardware"]
EVENT_TOPICS: tuple[Topic, ...] = get_args(Topic)


@record
class EventsParams:
    """Topics to hear of; none means all."""

    topics: tuple[Topic, ...] = ()


@record
class EventChunk:
    """What a topic consists of, or one thing of it that changed."""

    topic: str
    """models, instances, downloads or hardware."""
    name: str
    """`snapshot`, `added`, `changed`, `removed`, or `behind`."""
    number: Total
    """Changes of this topic so far, this one counted."""
    at: float
    """Seconds since 1970."""
    key: str | None = None
    """Of the thing that was added, has changed or was removed."""
    data: JsonMap | None = None
    """The thing as it is now; of a snapshot all things, by key."""


@record
class ConfigParams:
    """A setting by its name; with a value it is set."""

    name: Name | None = None
    """Unset: all of them."""
    value: object = None
    """What to set it to."""


@record
class DownloadParams:
    """A download by its id."""

    download: Name


@record
class Table:
    """Rows of a method whose exact types come with it."""

    rows: tuple[JsonMap, ...] = ()
