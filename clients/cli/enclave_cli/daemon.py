"""What the commands ask of a daemon: the part of the Python client that they use, as protocols.

`enclave.Client` fits `Daemon`, and so does the fake of the tests. Nothing here is imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, Unpack

if TYPE_CHECKING:
    from enclave.calls import Message, RequestOptions, SamplingOptions
    from enclave.protocol.bodies import (
        DaemonInfo,
        EventChunk,
        HealthResult,
        InstanceInfo,
        JsonMap,
        LoadResult,
        ModelInfo,
        ModelShow,
        PluginInfo,
        PullResult,
        RenderResult,
        TextChunk,
        Timings,
        UnloadResult,
        Usage,
        WhyRecord,
    )
    from enclave.protocol.folder_bodies import FolderInfo
    from enclave.protocol.messages import Progress
    from enclave.results import Embeddings, Ranking

Notice: TypeAlias = Callable[["Progress"], object]
"""Is told why a request waits, as long as it does."""


class Answer(Protocol):
    """The complete answer of a `generate`, a `chat` or an `infill`."""

    @property
    def finish_reason(self) -> str: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def timings(self) -> Timings: ...

    @property
    def receipt(self) -> object: ...


class Loading(Protocol):
    """A load that has ended well."""

    def result(self) -> LoadResult: ...


class Pulling(Protocol):
    """A model that is being fetched. Whatever ends the waiting early ends the request."""

    def result(self) -> PullResult: ...


class EventStream(Protocol):
    """What changes, as it changes; leaving the loop ends it."""

    def __iter__(self) -> Iterator[EventChunk]: ...


class AnswerStream(Protocol):
    """An answer as it comes; every error of the request is raised while iterating or by `result`."""

    def __iter__(self) -> Iterator[TextChunk]: ...

    def result(self) -> Answer: ...

    def cancel(self) -> object: ...


class Daemon(Protocol):
    """A connected client. Every method raises EnclaveError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...

    def generate(
        self, model: str, prompt: str | Sequence[int], /, **options: Unpack[SamplingOptions]
    ) -> AnswerStream: ...

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Message],
        schema: Message | None,
        template: str | None = None,
        template_arguments: Message | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AnswerStream: ...

    def infill(
        self, model: str, prefix: str, suffix: str, /, *, order: str, **options: Unpack[SamplingOptions]
    ) -> AnswerStream: ...

    def embed(
        self, model: str, texts: Sequence[str], /, *, normalize: bool, **options: Unpack[RequestOptions]
    ) -> Embeddings: ...

    def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        /,
        *,
        top: int | None,
        **options: Unpack[RequestOptions],
    ) -> Ranking: ...

    def tokenize(self, model: str, text: str, /, *, special: bool, parse_special: bool) -> Sequence[int]: ...

    def detokenize(self, model: str, tokens: Sequence[int], /) -> str: ...

    def render(
        self,
        model: str,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Message],
        template: str | None,
        add_generation_prompt: bool,
    ) -> RenderResult: ...

    def pull(self, reference: str, /, *, progress: Notice) -> Pulling: ...

    def downloads(self) -> Sequence[JsonMap]: ...

    def cancel_download(self, download: str, /) -> None: ...

    def load(
        self,
        model: str,
        /,
        *,
        context: int | None = None,
        kv_type: str | None = None,
        flash_attention: bool | None = None,
        threads: int | None = None,
        backend: str | None = None,
        progress: Notice,
    ) -> Loading: ...

    def unload(self, model: str | None, /, *, instance: str | None = None) -> UnloadResult: ...

    def models(self) -> Sequence[ModelInfo]: ...

    def show(self, model: str, /) -> ModelShow: ...

    def folders(self) -> Sequence[FolderInfo]: ...

    def add_folder(self, path: str, /) -> FolderInfo: ...

    def remove_folder(self, path: str, /) -> None: ...

    def instances(self) -> Sequence[InstanceInfo]: ...

    def plugins(self) -> Sequence[PluginInfo]: ...

    def why(self, request: str | None, /, *, model: str | None, limit: int) -> Sequence[WhyRecord]: ...

    def events(self, *topics: str) -> EventStream: ...

    def info(self) -> DaemonInfo: ...

    def health(self) -> HealthResult: ...

    def shutdown(self, *, now: bool) -> None: ...
