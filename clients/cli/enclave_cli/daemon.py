"""What the commands ask of a daemon: the part of the Python client that they use, as protocols.

`enclave.Client` fits `Daemon`, and so does the fake of the tests. Nothing here is imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, Unpack

if TYPE_CHECKING:
    from enclave.calls import SamplingOptions
    from enclave.protocol.bodies import (
        InstanceInfo,
        LoadResult,
        ModelInfo,
        ModelShow,
        PluginInfo,
        TextChunk,
        Timings,
        UnloadResult,
        Usage,
        WhyRecord,
    )
    from enclave.protocol.messages import Progress

Notice: TypeAlias = Callable[["Progress"], object]
"""Is told why a request waits, as long as it does."""


class Answer(Protocol):
    """The complete answer of a `generate`."""

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

    def generate(self, model: str, prompt: str, /, **options: Unpack[SamplingOptions]) -> AnswerStream: ...

    def load(
        self,
        model: str,
        /,
        *,
        context: int | None,
        kv_type: str | None,
        flash_attention: bool | None,
        threads: int | None,
        backend: str | None,
        progress: Notice,
    ) -> Loading: ...

    def unload(self, model: str, /) -> UnloadResult: ...

    def models(self) -> Sequence[ModelInfo]: ...

    def show(self, model: str, /) -> ModelShow: ...

    def instances(self) -> Sequence[InstanceInfo]: ...

    def plugins(self) -> Sequence[PluginInfo]: ...

    def why(self, request: str | None, /, *, model: str | None, limit: int) -> Sequence[WhyRecord]: ...
