"""The blocking client: the methods of the daemon as plain calls. Its asynchronous twin is aio.py.

Any number of threads may share a client; connection.py waits for answers, attempt.py for a connection. After a fork
each process has its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from enclave import calls
from enclave.attempt import Attempt, Connecting, Need
from enclave.calls import Message, PriorityName, Prompt, RequestOptions, SamplingOptions
from enclave.connecting import (
    CONNECT_ATTEMPTS,
    CONNECT_SECONDS,
    ClientOptions,
    find_address,
    no_answer,
    not_again,
)
from enclave.exceptions import ConnectionLostError, EnclaveError
from enclave.naming import ModelName, absolute, named
from enclave.stream import Stream

if TYPE_CHECKING:
    from enclave.connection import Connection
    from enclave.conversation import Answer
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
        UnloadResult,
        WhyRecord,
    )
    from enclave.protocol.folder_bodies import FolderInfo
    from enclave.protocol.messages import Priority, Progress
    from enclave.results import ChatResult, Embeddings, Prefilled, Ranking, TextResult


class Client:
    """A connection to this user's daemon, which is started if it does not run.

    It connects at the first call or on entering a `with` block, and again after `close` or when the daemon was lost.
    Calls that were lost before their answer had begun are then asked again by themselves, once and in their order; the
    others raise ConnectionLostError, which says which.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        priority: PriorityName | Priority = "normal",
        start: bool = True,
        endpoint: str | None = None,
        timeout: float = CONNECT_SECONDS,
    ) -> None:
        """`name` is shown to people (default: the program's); `endpoint` is used instead of looking for the daemon.

        `timeout` (seconds) is for connecting, including the daemon's start.
        """
        self._options = ClientOptions.make(name, priority, start, endpoint, timeout)
        self._processes: dict[int, Connecting] = {}
        """By process: after a fork, a thread that is not here may hold the old one's lock."""
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        connection = self._connection
        if connection is None or not connection.usable:
            return f"<Client {self._options.name!r}, not connected>"
        return f"<Client {self._options.name!r} at {connection.address}, {connection.conversation.open_count} open>"

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; open requests are cancelled. A later call connects again."""
        connecting = self._connecting
        with connecting.lock:
            connecting.closings += 1
            connection, self._connection = self._connection, None
            made = connecting.attempt.connection if connecting.attempt is not None else None
            connecting.changed.notify_all()
        for each in (connection, made):
            if each is not None:
                each.close()

    @property
    def _connecting(self) -> Connecting:
        process = os.getpid()
        return self._processes.get(process) or self._processes.setdefault(process, Connecting())

    def _connect(self, answer: Answer | None = None) -> Connection:
        """The connection, made if need be; threads share the attempt. With an `answer`, only as long as that has not
        ended. Raises EnclaveError."""
        connection = self._connection
        if connection is not None and connection.look():
            return connection
        connecting, mine = self._connecting, Attempt()
        need = Need(connecting, answer)
        while True:
            try:
                try:
                    with connecting.lock:
                        need.raise_if_over()
                        attempt = connecting.attempt
                        if attempt is not None:
                            connecting.changed.wait(need.seconds)
                            if attempt.error is not None:
                                raise attempt.error
                            continue
                        connecting.attempt = mine
                    return self._make(connecting, mine, need)
                finally:
                    connecting.end(mine)
            except BaseException:
                connecting.end(mine)  # Ctrl-C may have come in the middle of it
                raise

    def _make(self, connecting: Connecting, attempt: Attempt, need: Need) -> Connection:
        """The next connection, unless the last one is still good; with what was lost with the last one."""
        before = self._connection
        if before is not None and before.look():
            return before
        try:
            connection = self._connected(connecting, attempt, need)
            if before is not None:
                connection.adopt(before)
            with connecting.lock:
                need.raise_if_closed()
                self._connection = connection
        except BaseException as error:
            if attempt.connection is not None:
                attempt.connection.close()
            if isinstance(error, EnclaveError):
                need.raise_if_over()
                attempt.error = error
            raise
        if before is not None:
            before.close()
        return connection

    def _connected(self, connecting: Connecting, attempt: Attempt, need: Need) -> Connection:
        from enclave.connection import Connection

        deadline = time.monotonic() + self._options.timeout
        if need.ends_at is not None:
            deadline = min(deadline, need.ends_at)
        address = ""
        for _ in range(CONNECT_ATTEMPTS):
            address = find_address(self._options, max(0.0, deadline - time.monotonic()))
            connection = Connection(self._options, address)
            with connecting.lock:
                attempt.connection = connection
                need.raise_if_closed()
            try:
                connection.welcomed(self._options, deadline, need.is_over)
            except ConnectionLostError:
                connection.close()
                continue
            return connection
        raise no_answer(address)

    def _again(self, answer: Answer) -> None:
        """Ask on a new connection what was lost with the last one; when that can't be done, the answer has failed."""
        try:
            self._connect(answer).begin_again(answer)
        except EnclaveError as error:
            answer.fail(not_again(answer.lost(), error))

    def _stream(self, call: calls.Call) -> Stream[Any, Any]:
        return Stream(self._connect().begin(call), self._again, self._wake)

    def _wake(self) -> None:
        self._connecting.wake()

    def _ask(self, call: calls.Call) -> Any:
        with self._stream(call) as stream:
            return stream.result()

    # --- running a model ---------------------------------------------------------------------------------------------

    def generate(
        self, model: ModelName | None, prompt: Prompt, **options: Unpack[SamplingOptions]
    ) -> Stream[TextChunk, TextResult]:
        """Continue a prompt as it is: no template, BOS as the vocabulary says; token ids are taken unchanged. Without
        a model, the daemon's default one answers. `options` are those of `enclave.SamplingOptions`: `temperature`,
        `max_tokens`, `stop`, `priority`, `deadline`, `progress`, …"""
        return self._stream(calls.generate(named(model), prompt, options))

    def chat(
        self,
        model: ModelName,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        schema: Message | None = None,
        template: str | None = None,
        template_arguments: Message | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Stream[TextChunk, ChatResult]:
        """Answer a conversation, rendered by the model's template, or by another. `options` are those of
        `enclave.SamplingOptions`, as for `generate`."""
        return self._stream(calls.chat(named(model), messages, tools, schema, template, template_arguments, options))

    def infill(
        self,
        model: ModelName,
        prefix: str,
        suffix: str = "",
        *,
        order: str = "auto",
        **options: Unpack[SamplingOptions],
    ) -> Stream[TextChunk, TextResult]:
        """Fill in the text between two others."""
        return self._stream(calls.infill(named(model), prefix, suffix, order, options))

    def prefix(
        self,
        name: str,
        model: ModelName,
        *,
        messages: Sequence[Message] = (),
        prompt: Prompt | None = None,
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> Prefilled:
        """Keep a named beginning computed, for calls that name it as `prefix_name`."""
        return self._ask(calls.prefix(name, named(model), messages, prompt, tools, options))

    def prefill(
        self,
        model: ModelName,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> Prefilled:
        """Compute a prompt now because it will probably be asked for."""
        return self._ask(calls.prefill(named(model), prompt, messages, tools, options))

    def embed(
        self, model: ModelName, texts: str | Sequence[str], *, normalize: bool = True, **options: Unpack[RequestOptions]
    ) -> Embeddings:
        """Vectors of texts: `.vectors` is float32[n, d]."""
        return self._ask(calls.embed(named(model), texts, normalize, options))

    def rerank(
        self,
        model: ModelName,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None = None,
        **options: Unpack[RequestOptions],
    ) -> Ranking:
        """Order documents by how well they answer a query."""
        return self._ask(calls.rerank(named(model), query, documents, top, options))

    def tokenize(self, model: ModelName, text: str, *, special: bool = True, parse_special: bool = False) -> list[int]:
        """A text's token ids; `special` adds those that the vocabulary asks for; with `parse_special`, markers in
        the text, such as `<s>`, become theirs."""
        return list(self._ask(calls.tokenize(named(model), text, special, parse_special)).tokens)

    def detokenize(self, model: ModelName, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._ask(calls.detokenize(named(model), tokens)).text

    def render(
        self,
        model: ModelName,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        template: str | None = None,
        template_arguments: Message | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderResult:
        """What the model would see of a conversation."""
        return self._ask(
            calls.render(named(model), messages, tools, template, template_arguments, add_generation_prompt)
        )

    # --- models and instances ----------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """The catalog, by name."""
        page = self._ask(calls.models(""))
        found = list(page.models)
        while page.next is not None:
            page = self._ask(calls.models(page.next))
            found += page.models
        return found

    def show(self, model: ModelName) -> ModelShow:
        """One model with what its header says."""
        return self._ask(calls.show(named(model)))

    def search(self, query: str, *, source: str | None = None, limit: int = 20) -> list[JsonMap]:
        """Models that a source offers."""
        return list(self._ask(calls.search(query, source, limit)).rows)

    def remove(self, model: ModelName) -> None:
        """Take a model out of the catalog, and its files if a source put them there."""
        self._ask(calls.remove(named(model)))

    def alias(self, name: str, model: ModelName | None = None) -> None:
        """Give a model a second name; without a model the alias goes."""
        self._ask(calls.alias(name, named(model)))

    def folders(self) -> list[FolderInfo]:
        """The folders in which models are found."""
        return list(self._ask(calls.folders()).folders)

    def add_folder(self, path: str | os.PathLike[str]) -> FolderInfo:
        """Find models in this folder too, and in those below it, from now on; a relative path is made absolute. Nothing
        in it is changed. Returns what was found."""
        return self._ask(calls.add_folder(absolute(path)))

    def remove_folder(self, path: str | os.PathLike[str]) -> None:
        """No longer find models in a folder that was added. What lies in it stays as it is."""
        self._ask(calls.remove_folder(absolute(path)))

    def pull(
        self, reference: str, *, progress: Callable[[Progress], object] | None = None
    ) -> Stream[Progress, PullResult]:
        """Fetch a model: iterate for progress, or wait for `result()`. Letting go of the stream cancels the pull."""
        return self._stream(calls.pull(reference, progress))

    def downloads(self) -> list[JsonMap]:
        """Pulls that wait, run or have failed."""
        return list(self._ask(calls.downloads()).rows)

    def cancel_download(self, download: str) -> None:
        """End a pull."""
        self._ask(calls.cancel_download(download))

    def instances(self) -> list[InstanceInfo]:
        """What is loaded, or about to be."""
        return list(self._ask(calls.instances()).instances)

    def load(
        self,
        model: ModelName,
        *,
        backend: str | None = None,
        context: int | None = None,
        kv_type: str | None = None,
        flash_attention: bool | None = None,
        threads: int | None = None,
        sequences: int | None = None,
        pin: bool | None = None,
        progress: Callable[[Progress], object] | None = None,
        wait: bool = True,
    ) -> Stream[Progress, LoadResult]:
        """Have a model ready. With `wait` it is when this returns; without, iterate for progress, and hold on to the
        stream: letting go of it cancels the load. Its `result()` has the `instance`."""
        params = {
            "model": named(model),
            "backend": backend,
            "context": context,
            "kv_type": kv_type,
            "flash_attention": flash_attention,
            "threads": threads,
            "sequences": sequences,
            "pin": pin,
        }
        stream: Stream[Progress, LoadResult] = self._stream(calls.load(params, progress))
        if wait:
            with stream:
                stream.result()
        return stream

    def unload(self, model: ModelName | None = None, *, instance: str | None = None) -> UnloadResult:
        """End a model's instances, or one by its id."""
        return self._ask(calls.unload(named(model), instance))

    def pin(self, model: ModelName, pinned: bool = True) -> None:
        """Keep a model from being unloaded to make room, or no longer."""
        self._ask(calls.pin(named(model), pinned))

    # --- the daemon --------------------------------------------------------------------------------------------------

    def plugins(self) -> list[PluginInfo]:
        """What is installed, and what of it failed."""
        return list(self._ask(calls.plugins()).plugins)

    def why(self, request: str | None = None, *, model: ModelName | None = None, limit: int = 100) -> list[WhyRecord]:
        """The story of a request or a model, or of whatever came last; oldest first.

        `request` is a request as `enclave why` prints it, session and number: "c1/2". A model is named by `model`.
        """
        return list(self._ask(calls.why(request, named(model), limit)).records)

    def info(self) -> DaemonInfo:
        """Which daemon answers: `.pid .version .endpoint .home`."""
        return self._ask(calls.info())

    def health(self) -> HealthResult:
        """How the daemon does."""
        return self._ask(calls.health())

    def metrics(self) -> list[JsonMap]:
        """Figures for a monitoring system."""
        return list(self._ask(calls.metrics()).rows)

    def hardware(self) -> list[JsonMap]:
        """What this machine has, and what of it is free."""
        return list(self._ask(calls.hardware()).rows)

    def privacy(self) -> list[JsonMap]:
        """Every contact with the outside."""
        return list(self._ask(calls.privacy()).rows)

    def config(self, name: str | None = None) -> list[JsonMap]:
        """A setting, or all of them."""
        return list(self._ask(calls.config(name)).rows)

    def set_config(self, name: str, value: object) -> None:
        """Change a setting."""
        self._ask(calls.set_config(name, value))

    def events(self, *topics: str) -> Stream[EventChunk, None]:
        """Models, instances, downloads or hardware (all of them if none is named): a snapshot of each, then every
        change. It ends when it is cancelled."""
        return self._stream(calls.events(topics))

    def shutdown(self, *, now: bool = False) -> None:
        """End the daemon; with `now` without waiting for what runs."""
        self._ask(calls.shutdown(now))
