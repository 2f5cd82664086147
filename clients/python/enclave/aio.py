"""The asynchronous client: the twin of client.py with the same names and signatures, on asyncio.

Any number of tasks may share a client. It belongs to the loop in which it is used; in another loop, or after a fork, it
makes a connection of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, Unpack

from enclave import calls
from enclave.aio_stream import AsyncStream
from enclave.calls import Message, PriorityName, Prompt, RequestOptions, SamplingOptions
from enclave.connecting import (
    CONNECT_ATTEMPTS,
    CONNECT_SECONDS,
    ClientOptions,
    find_address,
    no_answer,
    not_again,
)
from enclave.exceptions import ConnectionLostError, EnclaveError, error_for
from enclave.naming import ModelName, absolute, named

if TYPE_CHECKING:
    from enclave.aio_connection import AsyncConnection
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

Arguments = ParamSpec("Arguments")


class AsyncClient:
    """A connection to this user's daemon, which is started if it does not run.

    It connects at the first call or on entering an `async with` block, and again after `close` or when the daemon was
    lost. Calls that were lost before their answer had begun are then asked again by themselves, once and in their
    order; the others raise ConnectionLostError, which says which.
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
        self._connection: AsyncConnection | None = None
        self._connecting: asyncio.Task[AsyncConnection] | None = None

    def __repr__(self) -> str:
        connection = self._connection
        if connection is None or connection.conversation.ending is not None:
            return f"<AsyncClient {self._options.name!r}, not connected>"
        open_count = connection.conversation.open_count
        return f"<AsyncClient {self._options.name!r} at {connection.address}, {open_count} open>"

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; open requests are cancelled. A later call connects again."""
        connecting, self._connecting = self._connecting, None
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()  # first: what waits for the next connection ends by it
        if connecting is not None and not connecting.get_loop().is_closed():
            connecting.cancel()
            if connecting.get_loop() is asyncio.get_running_loop():
                await asyncio.wait([connecting])

    def _connected(self) -> AsyncConnection | None:
        """The connection if calls may begin on it now."""
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def _connect(self) -> AsyncConnection:
        """The connection, made if need be; tasks share the attempt. Raises EnclaveError."""
        connection = self._connected()
        if connection is not None:
            return connection
        loop = asyncio.get_running_loop()
        if self._connecting is None or self._connecting.done() or self._connecting.get_loop() is not loop:
            self._connecting = loop.create_task(self._make_connection())
            self._connecting.add_done_callback(_look_at)
        connecting = self._connecting
        await asyncio.wait([connecting])  # who waits may be cancelled without it, and it without them
        if connecting.cancelled():
            raise error_for("cancelled", "the client was closed")
        return connecting.result()

    async def _make_connection(self) -> AsyncConnection:
        from enclave.aio_connection import AsyncConnection

        before = self._connection
        address = ""
        for _ in range(CONNECT_ATTEMPTS):
            address = await asyncio.to_thread(find_address, self._options, self._options.timeout)
            connection = AsyncConnection(self._options, address)
            try:
                await connection.welcomed(self._options)
            except ConnectionLostError:
                await connection.close()
                continue
            except BaseException:
                await connection.close()
                raise
            if before is not None:
                connection.adopt(before)
                await before.close()
            self._connection = connection
            return connection
        raise no_answer(address)

    async def _again(self, answer: Answer) -> None:
        """Ask on a new connection what was lost with the last one; when that can't be done, the answer has failed."""
        if answer.done:
            return
        try:
            async with asyncio.timeout_at(answer.ends_at):
                connection = await self._connect()
            connection.begin_again(answer)
        except EnclaveError as error:
            answer.fail(not_again(answer.lost(), error))
        except TimeoutError:
            answer.fail(error_for("deadline"))

    def _stream(
        self, make: Callable[Arguments, calls.Call], *arguments: Arguments.args, **named_arguments: Arguments.kwargs
    ) -> AsyncStream[Any, Any]:
        """The answer to the call that `make` makes; what is wrong with it is raised to who waits."""
        call: calls.Call | EnclaveError
        try:
            call = make(*arguments, **named_arguments)
        except EnclaveError as error:
            call = error
        return self._asked(call)

    def _asked(self, call: calls.Call | EnclaveError) -> AsyncStream[Any, Any]:
        return AsyncStream(call, self._connected(), self._connect, self._again)

    async def _ask(self, call: calls.Call) -> Any:
        return await self._asked(call).result()

    # --- running a model ---------------------------------------------------------------------------------------------

    def generate(
        self, model: ModelName | None, prompt: Prompt, **options: Unpack[SamplingOptions]
    ) -> AsyncStream[TextChunk, TextResult]:
        """Continue a prompt as it is: no template, BOS as the vocabulary says; token ids are taken unchanged. Without
        a model, the daemon's default one answers. `options` are those of `enclave.SamplingOptions`: `temperature`,
        `max_tokens`, `stop`, `priority`, `deadline`, `progress`, …"""
        return self._stream(calls.generate, named(model), prompt, options)

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
    ) -> AsyncStream[TextChunk, ChatResult]:
        """Answer a conversation, rendered by the model's template, or by another. `options` are those of
        `enclave.SamplingOptions`, as for `generate`."""
        return self._stream(calls.chat, named(model), messages, tools, schema, template, template_arguments, options)

    def infill(
        self,
        model: ModelName,
        prefix: str,
        suffix: str = "",
        *,
        order: str = "auto",
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream[TextChunk, TextResult]:
        """Fill in the text between two others."""
        return self._stream(calls.infill, named(model), prefix, suffix, order, options)

    async def prefix(
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
        return await self._ask(calls.prefix(name, named(model), messages, prompt, tools, options))

    async def prefill(
        self,
        model: ModelName,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> Prefilled:
        """Compute a prompt now because it will probably be asked for."""
        return await self._ask(calls.prefill(named(model), prompt, messages, tools, options))

    async def embed(
        self, model: ModelName, texts: str | Sequence[str], *, normalize: bool = True, **options: Unpack[RequestOptions]
    ) -> Embeddings:
        """Vectors of texts: `.vectors` is float32[n, d]."""
        return await self._ask(calls.embed(named(model), texts, normalize, options))

    async def rerank(
        self,
        model: ModelName,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None = None,
        **options: Unpack[RequestOptions],
    ) -> Ranking:
        """Order documents by how well they answer a query."""
        return await self._ask(calls.rerank(named(model), query, documents, top, options))

    async def tokenize(
        self, model: ModelName, text: str, *, special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """A text's token ids; `special` adds those that the vocabulary asks for; with `parse_special`, markers in
        the text, such as `<s>`, become theirs."""
        return list((await self._ask(calls.tokenize(named(model), text, special, parse_special))).tokens)

    async def detokenize(self, model: ModelName, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return (await self._ask(calls.detokenize(named(model), tokens))).text

    async def render(
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
        return await self._ask(
            calls.render(named(model), messages, tools, template, template_arguments, add_generation_prompt)
        )

    # --- models and instances ----------------------------------------------------------------------------------------

    async def models(self) -> list[ModelInfo]:
        """The catalog, by name."""
        page = await self._ask(calls.models(""))
        found = list(page.models)
        while page.next is not None:
            page = await self._ask(calls.models(page.next))
            found += page.models
        return found

    async def show(self, model: ModelName) -> ModelShow:
        """One model with what its header says."""
        return await self._ask(calls.show(named(model)))

    async def search(self, query: str, *, source: str | None = None, limit: int = 20) -> list[JsonMap]:
        """Models that a source offers."""
        return list((await self._ask(calls.search(query, source, limit))).rows)

    async def remove(self, model: ModelName) -> None:
        """Take a model out of the catalog, and its files if a source put them there."""
        await self._ask(calls.remove(named(model)))

    async def alias(self, name: str, model: ModelName | None = None) -> None:
        """Give a model a second name; without a model the alias goes."""
        await self._ask(calls.alias(name, named(model)))

    async def folders(self) -> list[FolderInfo]:
        """The folders in which models are found."""
        return list((await self._ask(calls.folders())).folders)

    async def add_folder(self, path: str | os.PathLike[str]) -> FolderInfo:
        """Find models in this folder too, and in those below it, from now on; a relative path is made absolute. Nothing
        in it is changed. Returns what was found."""
        return await self._ask(calls.add_folder(absolute(path)))

    async def remove_folder(self, path: str | os.PathLike[str]) -> None:
        """No longer find models in a folder that was added. What lies in it stays as it is."""
        await self._ask(calls.remove_folder(absolute(path)))

    def pull(
        self, reference: str, *, progress: Callable[[Progress], object] | None = None
    ) -> AsyncStream[Progress, PullResult]:
        """Fetch a model: await it, or iterate for progress. Letting go of the stream cancels the pull."""
        return self._stream(calls.pull, reference, progress)

    async def downloads(self) -> list[JsonMap]:
        """Pulls that wait, run or have failed."""
        return list((await self._ask(calls.downloads())).rows)

    async def cancel_download(self, download: str) -> None:
        """End a pull."""
        await self._ask(calls.cancel_download(download))

    async def instances(self) -> list[InstanceInfo]:
        """What is loaded, or about to be."""
        return list((await self._ask(calls.instances())).instances)

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
    ) -> AsyncStream[Progress, LoadResult]:
        """Have a model ready: await it for a result with the `instance`, or iterate for progress. Letting go of the
        stream cancels the load. `wait` is for the blocking client's signature."""
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
        return self._stream(calls.load, params, progress)

    async def unload(self, model: ModelName | None = None, *, instance: str | None = None) -> UnloadResult:
        """End a model's instances, or one by its id."""
        return await self._ask(calls.unload(named(model), instance))

    async def pin(self, model: ModelName, pinned: bool = True) -> None:
        """Keep a model from being unloaded to make room, or no longer."""
        await self._ask(calls.pin(named(model), pinned))

    # --- the daemon --------------------------------------------------------------------------------------------------

    async def plugins(self) -> list[PluginInfo]:
        """What is installed, and what of it failed."""
        return list((await self._ask(calls.plugins())).plugins)

    async def why(
        self, request: str | None = None, *, model: ModelName | None = None, limit: int = 100
    ) -> list[WhyRecord]:
        """The story of a request or a model, or of whatever came last; oldest first.

        `request` is a request as `enclave why` prints it, session and number: "c1/2". A model is named by `model`.
        """
        return list((await self._ask(calls.why(request, named(model), limit))).records)

    async def info(self) -> DaemonInfo:
        """Which daemon answers: `.pid .version .endpoint .home`."""
        return await self._ask(calls.info())

    async def health(self) -> HealthResult:
        """How the daemon does."""
        return await self._ask(calls.health())

    async def metrics(self) -> list[JsonMap]:
        """Figures for a monitoring system."""
        return list((await self._ask(calls.metrics())).rows)

    async def hardware(self) -> list[JsonMap]:
        """What this machine has, and what of it is free."""
        return list((await self._ask(calls.hardware())).rows)

    async def privacy(self) -> list[JsonMap]:
        """Every contact with the outside."""
        return list((await self._ask(calls.privacy())).rows)

    async def config(self, name: str | None = None) -> list[JsonMap]:
        """A setting, or all of them."""
        return list((await self._ask(calls.config(name))).rows)

    async def set_config(self, name: str, value: object) -> None:
        """Change a setting."""
        await self._ask(calls.set_config(name, value))

    def events(self, *topics: str) -> AsyncStream[EventChunk, None]:
        """Models, instances, downloads or hardware (all of them if none is named): a snapshot of each, then every
        change. It ends when it is cancelled."""
        return self._stream(calls.events, topics)

    async def shutdown(self, *, now: bool = False) -> None:
        """End the daemon; with `now` without waiting for what runs."""
        await self._ask(calls.shutdown(now))


def _look_at(connecting: asyncio.Task[AsyncConnection]) -> None:
    """Nobody may be left who waits for it, and its error is no news then."""
    if not connecting.cancelled():
        connecting.exception()
