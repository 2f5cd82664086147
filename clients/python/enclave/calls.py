"""The client's methods as plain values: what a caller's arguments become on the wire. Pure.

Both clients build their requests here, so that they cannot differ. Nothing here sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import field
from operator import index
from typing import Any, Literal, TypedDict, cast

from enclave.exceptions import BadRequestError, error_from
from enclave.protocol.bodies import (
    AliasParams,
    ChatParams,
    ConfigParams,
    DetokenizeParams,
    DownloadParams,
    EmbedParams,
    Empty,
    EventsParams,
    GenerateParams,
    InfillParams,
    LoadParams,
    ModelParams,
    ModelsParams,
    PinParams,
    PrefillParams,
    PrefixParams,
    RenderParams,
    RerankParams,
    SearchParams,
    ShutdownParams,
    TokenBias,
    TokenizeParams,
    UnloadParams,
    WhyParams,
)
from enclave.protocol.codec import field_names
from enclave.protocol.errors import LocalProtocolError
from enclave.protocol.folder_bodies import FolderParams
from enclave.protocol.messages import Priority, Progress, Request
from enclave.protocol.methods import METHODS, write_body
from enclave.protocol.records import record

MODELS_A_PAGE = 500
"""Enough for most catalogs, little enough to be told at once."""
PriorityName = Literal["interactive", "normal", "background"]
Message = Mapping[str, object]
"""One message of a conversation: role, content, …"""
Prompt = str | Sequence[int]
"""Text, or token ids taken as they are."""


class RequestOptions(TypedDict, total=False):
    """What every call of a model takes; all of it may be left out."""

    priority: PriorityName | Priority | None
    """Instead of the client's."""
    deadline: float | None
    """Seconds from now within which the whole answer is wanted."""
    keep_alive: float | None
    """Seconds for which the model would like to stay loaded afterwards."""
    supersedes: str | None
    """A key: an older request with the same key is cancelled."""
    resumable_seconds: float
    """How long the request goes on if this client vanishes."""
    context: int | None
    """Tokens of context wished for."""
    backend: str | None
    """Only this backend will do."""
    adapter: str | None
    draft: str | None
    projector: str | None
    prefix_name: str | None
    """A beginning kept by `prefix`."""
    truncate_to: int | None
    """Of `embed` and `rerank`: cut longer texts to so many tokens, instead of refusing what the model does not take."""
    progress: Callable[[Progress], object] | None
    """Called, while the answer is waited for, with what it waits for."""


class StreamOptions(RequestOptions, total=False):
    """What a call with a streamed answer takes besides."""

    credit: int
    """Messages that may be under way unread."""
    events: bool
    """Whether iterating gives `Progress` too."""


class SamplingOptions(StreamOptions, total=False):
    """How text is made; what is left out comes from the preset, the model, then the built-in value."""

    temperature: float | None
    """0 takes the likeliest token."""
    max_tokens: int | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_last_n: int | None
    """Tokens that the penalties look back on; -1: all."""
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_last_n: int | None
    dry_breakers: Sequence[str] | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat: Literal[0, 1, 2] | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logit_bias: Mapping[int, float | None] | None
    """What to add to the logits of tokens, by their ids; None: the token never comes."""
    logprobs: int | None
    """Tell each token's log probability, and those of so many of the likeliest."""
    seed: int | None
    stop: str | Sequence[str] | None
    """Texts at which to end; they are not part of the answer."""
    ignore_eos: bool
    choices: int
    """Answers wanted for the one prompt."""
    overflow: Literal["error", "truncate", "shift"]
    """Of `generate`: what to do about what the context does not hold."""
    keep: int
    """Of `generate`: tokens at the prompt's beginning that are never left out."""


_HEADER_NAMES = frozenset(field_names(Request)) - {"id", "token", "method", "model", "attachments"}
_RENAMED = {"prefix_name": "prefix"}
_OPTION_NAMES = frozenset(SamplingOptions.__annotations__)


@record
class Call:
    """One call, ready to become a request."""

    method: str
    model: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of Request."""
    body: bytes = b""
    progress: Callable[[Progress], object] | None = field(default=None, repr=False)
    events: bool = False

    @property
    def deadline(self) -> float | None:
        """Seconds from the call within which the whole answer is wanted."""
        return self.header.get("deadline")

    @property
    def supersedes(self) -> str | None:
        """The key: of those that have the same, only the last is wanted."""
        return self.header.get("supersedes")

    @property
    def is_repeatable(self) -> bool:
        """Whether its method may be asked again when nothing has come of the first time."""
        return METHODS[self.method].repeatable

    def request(self, request_id: int, deadline: float | None = None) -> Request:
        """The request under this id, with a `deadline` instead of the first one where some of that has passed."""
        header: dict[str, Any] = {**self.header, **({} if deadline is None else {"deadline": deadline})}
        return Request(id=request_id, method=self.method, model=self.model, body=self.body, **header)


def generate(model: str | None, prompt: Prompt, options: SamplingOptions) -> Call:
    """A prompt as it is."""
    return _call("generate", model, GenerateParams, {"prompt": _prompt(prompt)}, options)


def chat(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[Message],
    schema: Message | None,
    template: str | None,
    template_arguments: Message | None,
    options: SamplingOptions,
) -> Call:
    """A conversation."""
    params = {
        "messages": _maps("messages", messages),
        "tools": _maps("tools", tools),
        "schema": schema,
        "template": template,
        "template_arguments": template_arguments,
    }
    return _call("chat", model, ChatParams, params, options)


def infill(model: str, prefix: str, suffix: str, order: str, options: SamplingOptions) -> Call:
    """Text between two others."""
    params = {"prefix": _text("prefix", prefix), "suffix": _text("suffix", suffix), "order": order}
    return _call("infill", model, InfillParams, params, options)


def prefix(
    name: str,
    model: str,
    messages: Sequence[Message],
    prompt: Prompt | None,
    tools: Sequence[Message],
    options: RequestOptions,
) -> Call:
    """A named beginning."""
    params = {
        "name": name,
        "messages": _maps("messages", messages),
        "prompt": None if prompt is None else _prompt(prompt),
        "tools": _maps("tools", tools),
    }
    return _call("prefix", model, PrefixParams, params, options)


def prefill(
    model: str, prompt: Prompt | None, messages: Sequence[Message], tools: Sequence[Message], options: RequestOptions
) -> Call:
    """A prompt to compute ahead."""
    params = {
        "messages": _maps("messages", messages),
        "prompt": None if prompt is None else _prompt(prompt),
        "tools": _maps("tools", tools),
    }
    return _call("prefill", model, PrefillParams, params, options)


def embed(model: str, texts: str | Sequence[str], normalize: bool, options: RequestOptions) -> Call:
    """Texts to vectors."""
    params = {"texts": (texts,) if isinstance(texts, str) else _texts("texts", texts), "normalize": normalize}
    return _call("embed", model, EmbedParams, params, options)


def rerank(model: str, query: str, documents: Sequence[str], top: int | None, options: RequestOptions) -> Call:
    """Documents by how well they answer."""
    params = {"query": _text("query", query), "documents": _texts("documents", documents), "top": top}
    return _call("rerank", model, RerankParams, params, options)


def tokenize(model: str, text: str, special: bool, parse_special: bool = False) -> Call:
    """Text to token ids."""
    params = {"text": _text("text", text), "special": special, "parse_special": parse_special}
    return _call("tokenize", model, TokenizeParams, params, {})


def detokenize(model: str, tokens: Sequence[int]) -> Call:
    """Token ids to text."""
    return _call("detokenize", model, DetokenizeParams, {"tokens": _tokens("tokens", tokens)}, {})


def render(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[Message],
    template: str | None,
    template_arguments: Message | None,
    add_generation_prompt: bool,
) -> Call:
    """What the model would see."""
    params = {
        "messages": _maps("messages", messages),
        "tools": _maps("tools", tools),
        "template": template,
        "template_arguments": template_arguments,
        "add_generation_prompt": add_generation_prompt,
    }
    return _call("render", model, RenderParams, params, {})


def pull(reference: str, progress: Callable[[Progress], object] | None) -> Call:
    """A model to fetch."""
    return _call("models.pull", None, ModelParams, {"model": reference}, {"progress": progress, "events": True})


def search(query: str, source: str | None, limit: int) -> Call:
    """Models of a source."""
    return _call("models.search", None, SearchParams, {"query": query, "source": source, "limit": limit}, {})


def remove(model: str) -> Call:
    """A model to take out of the catalog."""
    return _call("models.remove", None, ModelParams, {"model": model}, {})


def alias(name: str, model: str | None) -> Call:
    """A second name for a model."""
    return _call("models.alias", None, AliasParams, {"alias": name, "model": model}, {})


def downloads() -> Call:
    """Pulls that wait, run or have failed."""
    return _call("downloads.list", None, Empty, {}, {})


def cancel_download(download: str) -> Call:
    """A pull to end."""
    return _call("downloads.cancel", None, DownloadParams, {"download": download}, {})


def pin(model: str, pinned: bool) -> Call:
    """A model that stays, or no longer does."""
    return _call("instances.pin", None, PinParams, {"model": model, "pinned": pinned}, {})


def load(params: Mapping[str, object], progress: Callable[[Progress], object] | None) -> Call:
    """A model to have ready."""
    return _call("instances.load", None, LoadParams, params, {"progress": progress, "events": True})


def unload(model: str | None, instance: str | None) -> Call:
    """Instances to end."""
    return _call("instances.unload", None, UnloadParams, {"model": model, "instance": instance}, {})


def models(after: str) -> Call:
    """A page of the catalog."""
    return _call("models.list", None, ModelsParams, {"after": after, "limit": MODELS_A_PAGE}, {})


def show(model: str) -> Call:
    """One model with its header."""
    return _call("models.show", None, ModelParams, {"model": model}, {})


def folders() -> Call:
    """Where models are found."""
    return _call("folders.list", None, Empty, {}, {})


def add_folder(path: str) -> Call:
    """A folder to look into."""
    return _call("folders.add", None, FolderParams, {"path": path}, {})


def remove_folder(path: str) -> Call:
    """A folder to look into no longer."""
    return _call("folders.remove", None, FolderParams, {"path": path}, {})


def instances() -> Call:
    """What is loaded."""
    return _call("instances.list", None, Empty, {}, {})


def plugins() -> Call:
    """What is installed."""
    return _call("plugins.list", None, Empty, {}, {})


def why(request: str | None, model: str | None, limit: int) -> Call:
    """The story of a request or a model."""
    return _call("scheduler.why", None, WhyParams, {"request": request, "model": model, "limit": limit}, {})


def info() -> Call:
    """Which daemon it is."""
    return _call("daemon.info", None, Empty, {}, {})


def health() -> Call:
    """How the daemon does."""
    return _call("daemon.health", None, Empty, {}, {})


def metrics() -> Call:
    """Figures for a monitoring system."""
    return _call("daemon.metrics", None, Empty, {}, {})


def hardware() -> Call:
    """What this machine has."""
    return _call("hardware.show", None, Empty, {}, {})


def privacy() -> Call:
    """Contacts with the outside."""
    return _call("privacy.report", None, Empty, {}, {})


def config(name: str | None) -> Call:
    """Settings."""
    return _call("config.get", None, ConfigParams, {"name": name}, {})


def set_config(name: str, value: object) -> Call:
    """A setting to change."""
    return _call("config.set", None, ConfigParams, {"name": name, "value": value}, {})


def shutdown(now: bool) -> Call:
    """The daemon's end."""
    return _call("daemon.shutdown", None, ShutdownParams, {"now": now}, {})


def events(topics: Sequence[str]) -> Call:
    """News."""
    return _call("events.subscribe", None, EventsParams, {"topics": tuple(topics)}, {})


def _prompt(prompt: Prompt) -> object:
    return prompt if isinstance(prompt, str) else _tokens("prompt", prompt, "text or token ids")


def _tokens(name: str, value: Sequence[int], expected: str = "token ids") -> tuple[int, ...]:
    """Token ids of any integer type; raises TypeError for anything else."""
    given = _items(name, value, expected)
    try:
        return tuple(map(index, cast("tuple[int, ...]", given)))
    except TypeError:
        wrong = next(item for item in given if not hasattr(item, "__index__"))
        raise TypeError(f"{name}: {expected}, not a list of {_kind(wrong)}") from None


def _items(name: str, value: object, expected: str) -> tuple[object, ...]:
    """The items of a sequence; raises TypeError for what is none, or is one of something else altogether."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: {expected}, not {_kind(cast(object, value))}")
    return tuple(cast("Iterable[object]", value))


def _texts(name: str, value: Sequence[str]) -> tuple[object, ...]:
    given = _items(name, value, "a list of texts")
    for item in given:
        _text(name, item, "a list of texts, not one of ")
    return given


def _maps(name: str, value: Sequence[Message]) -> tuple[object, ...]:
    given = _items(name, value, "a list of maps")
    for item in given:
        if not isinstance(item, Mapping):
            raise TypeError(f"{name}: a list of maps, not of {_kind(item)}")
    return given


def _biases(value: object) -> tuple[TokenBias, ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias: a map from token ids to numbers, not {_kind(value)}")
    biases = cast("Mapping[int, float | None]", value)
    return tuple(
        TokenBias(token=token, bias=biases[key])
        for key, token in zip(biases, _tokens("logit_bias", [*biases]), strict=True)
    )


def _text(name: str, value: object, expected: str = "text, not ") -> object:
    if not isinstance(value, str):
        raise TypeError(f"{name}: {expected}{_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _call(
    name: str,
    model: str | None,
    params: type[Any],
    values: Mapping[str, object],
    options: RequestOptions | StreamOptions | SamplingOptions,
) -> Call:
    known = field_names(params)
    body = dict(values)
    header: dict[str, Any] = {}
    given = dict(cast("Mapping[str, Any]", options))
    progress = given.pop("progress", None)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: a function, not {_kind(progress)}")
    with_events = given.pop("events", False)
    for option, value in given.items():
        if option not in _OPTION_NAMES:
            raise TypeError(f"{name}() got an unexpected option {option!r}")
        if value is None:
            continue
        wire_name = _RENAMED.get(option, option)
        if wire_name in known and option not in _RENAMED:
            body[wire_name] = (value,) if option == "stop" and isinstance(value, str) else value
        elif wire_name in _HEADER_NAMES:
            header[wire_name] = value
        else:
            raise TypeError(f"{name}() does not take the option {option!r}")
    if "priority" in header:
        header["priority"] = priority_of(header["priority"])
    for of_texts in ("stop", "dry_breakers"):
        if of_texts in body:
            body[of_texts] = _texts(of_texts, cast("Sequence[str]", body[of_texts]))
    if "logit_bias" in body:
        body["logit_bias"] = _biases(body["logit_bias"])
    if model is not None and not isinstance(cast(object, model), str):
        raise TypeError(f"{name}(): a model is named by text or a path, not by {type(model).__name__}")
    try:
        return Call(
            method=name,
            model=model,
            header=header,
            body=write_body(params(**body)),
            progress=progress,
            events=with_events,
        )
    except LocalProtocolError as error:
        raise error_from(error) from None


def priority_of(value: object) -> Priority:
    """The priority of that name; raises BadRequestError, which names the choices."""
    try:
        return Priority(value)
    except ValueError:
        names = ", ".join(Priority)
        raise BadRequestError(f"priority: expected one of {names}, not {value!r}", field="priority") from None
