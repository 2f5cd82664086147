"""Every method of the daemon: what it takes and gives, who answers it and which right it needs.

bodies.py has the types; docs/protocol.md prints the table. Parameters travel in a request's body, results in a
result's, chunk values in a chunk's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from enclave.protocol.bodies import (
    AliasParams,
    ChatParams,
    ChatResult,
    ConfigParams,
    DaemonInfo,
    DetokenizeParams,
    DetokenizeResult,
    DownloadParams,
    EmbedParams,
    EmbedResult,
    Empty,
    EventChunk,
    EventsParams,
    GenerateParams,
    GenerateResult,
    HealthResult,
    InfillParams,
    InstancesResult,
    LoadParams,
    LoadResult,
    ModelParams,
    ModelShow,
    ModelsParams,
    ModelsResult,
    PinParams,
    PluginsResult,
    PrefillParams,
    PrefillResult,
    PrefixParams,
    PullResult,
    RenderParams,
    RenderResult,
    RerankParams,
    RerankResult,
    SearchParams,
    ShutdownParams,
    Table,
    TextChunk,
    TokenizeParams,
    TokenizeResult,
    UnloadParams,
    UnloadResult,
    WhyParams,
    WhyResult,
)
from enclave.protocol.codec import decode, encode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.folder_bodies import FolderInfo, FolderParams, FoldersResult
from enclave.protocol.messages import Chunk, Request, Result
from enclave.protocol.packing import BODY_LIMITS, iterate, pack, unpack


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
    repeatable: bool = True
    """Whether a client may ask again by itself when the connection was lost before the answer began."""


def _worker(name: str, params: type[Any], result: type[Any], chunk: type[Any] | None, built: bool = False) -> Method:
    return Method(
        name, params, result, chunk, AnsweredBy.WORKER, Right.USE, built=built, wants_model=True, progresses=True
    )


def _daemon(name: str, params: type[Any], result: type[Any], *, built: bool = False) -> Method:
    return Method(name, params, result, None, AnsweredBy.DAEMON, Right.USE, built=built)


def _change(name: str, params: type[Any], result: type[Any] = Empty, *, built: bool = False) -> Method:
    return Method(name, params, result, None, AnsweredBy.DAEMON, Right.MANAGE, built=built, repeatable=False)


_ROWS = (
    _daemon("daemon.info", Empty, DaemonInfo, built=True),
    _daemon("daemon.health", Empty, HealthResult, built=True),
    _daemon("daemon.metrics", Empty, Table),
    _change("daemon.shutdown", ShutdownParams, built=True),
    _daemon("models.list", ModelsParams, ModelsResult, built=True),
    Method("models.show", ModelParams, ModelShow, None, AnsweredBy.INSPECTOR, Right.USE),
    Method("models.search", SearchParams, Table, None, AnsweredBy.FETCHER, Right.USE, built=False),
    Method(
        "models.pull", ModelParams, PullResult, None, AnsweredBy.FETCHER, Right.MANAGE, built=False, progresses=True
    ),
    _change("models.remove", ModelParams),
    _change("models.alias", AliasParams),
    _daemon("folders.list", Empty, FoldersResult, built=True),
    _change("folders.add", FolderParams, FolderInfo, built=True),
    _change("folders.remove", FolderParams, built=True),
    _daemon("instances.list", Empty, InstancesResult, built=True),
    Method("instances.load", LoadParams, LoadResult, None, AnsweredBy.DAEMON, Right.MANAGE, progresses=True),
    _change("instances.unload", UnloadParams, UnloadResult, built=True),
    _change("instances.pin", PinParams),
    _worker("generate", GenerateParams, GenerateResult, TextChunk, built=True),
    _worker("chat", ChatParams, ChatResult, TextChunk),
    _worker("infill", InfillParams, GenerateResult, TextChunk),
    _worker("prefix", PrefixParams, PrefillResult, None),
    _worker("prefill", PrefillParams, PrefillResult, None),
    _worker("embed", EmbedParams, EmbedResult, None, built=True),
    _worker("rerank", RerankParams, RerankResult, None, built=True),
    Method(
        "tokenize",
        TokenizeParams,
        TokenizeResult,
        None,
        AnsweredBy.INSPECTOR,
        Right.USE,
        wants_model=True,
    ),
    Method(
        "detokenize",
        DetokenizeParams,
        DetokenizeResult,
        None,
        AnsweredBy.INSPECTOR,
        Right.USE,
        wants_model=True,
    ),
    Method("render", RenderParams, RenderResult, None, AnsweredBy.INSPECTOR, Right.USE, built=False, wants_model=True),
    _daemon("downloads.list", Empty, Table),
    _change("downloads.cancel", DownloadParams),
    _daemon("hardware.show", Empty, Table),
    _daemon("plugins.list", Empty, PluginsResult, built=True),
    _daemon("privacy.report", Empty, Table),
    _daemon("scheduler.why", WhyParams, WhyResult, built=True),
    Method("events.subscribe", EventsParams, Empty, EventChunk, AnsweredBy.DAEMON, Right.USE),
    _daemon("config.get", ConfigParams, Table),
    _change("config.set", ConfigParams),
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
            raise RemoteProtocolError(
                f"{row.name} is not built yet", code="unsupported", field="method", hint="A newer daemon may have it."
            )
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


def read_chunks(name: str, chunk: Chunk) -> list[Any]:
    """The typed values of a chunk's body; raises RemoteProtocolError, also when they are not as many as announced."""
    kind = method(name).chunk
    if kind is None:
        raise RemoteProtocolError(f"{name} has no chunks")
    if chunk.count == 1:
        # Most are; and a single value is read more quickly.
        return [decode(kind, unpack(chunk.body, BODY_LIMITS, "body"))]
    values = [decode(kind, value) for value in iterate(chunk.body, BODY_LIMITS, "body")]
    if len(values) != chunk.count:
        raise RemoteProtocolError(f"count: {chunk.count} values announced, {len(values)} sent", field="count")
    return values


def write_body(value: object) -> bytes:
    """A params, result or chunk object as one MessagePack value; raises LocalProtocolError."""
    return pack(encode(value))


def _read_body(body: bytes) -> object:
    return unpack(body, BODY_LIMITS, "body") if body else dict[str, object]()
