"""The asynchronous client: the twin of client.py with the same names and signatures, on asyncio.

One task of its own reads the socket; everything runs in the loop in which the client connects. Both clients are
driven by conversation.py and calls.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, cast

import zmq
import zmq.asyncio

from enclave import calls
from enclave.calls import Message, PriorityName, Prompt, RequestOptions, SamplingOptions
from enclave.connecting import (
    CONNECT_ATTEMPTS,
    CONNECT_SECONDS,
    MONITORED,
    ClientOptions,
    find_address,
    is_lost,
    lost_error,
    no_answer,
    no_welcome,
    program,
    set_options,
)
from enclave.conversation import Answer, Conversation
from enclave.exceptions import CancelledError, ConnectionLostError, EnclaveError
from enclave.naming import ModelName, named
from enclave.protocol.messages import Priority, Progress
from enclave.protocol.methods import (
    DaemonInfo,
    EventChunk,
    HealthResult,
    InstanceInfo,
    LoadResult,
    ModelInfo,
    ModelShow,
    PluginInfo,
    PrefillResult,
    PullResult,
    RenderResult,
    RerankResult,
    TextChunk,
    UnloadResult,
    WhyRecord,
)
from enclave.results import ChatResult, Embeddings, TextResult

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MESSAGES_A_TURN = 256
"""Taken in before the other tasks of the loop get their turn."""


class AsyncStream(Generic[ItemT, ResultT]):
    """The answer to a call while it comes: iterate for its pieces, `result()` (or awaiting it) for the whole.

    The request is sent at once, or as soon as the client is connected. Leaving an `async for` loop early, leaving the
    `async with` block, `cancel()` or cancelling the task that waits cancels the request.
    """

    def __init__(self, client: AsyncClient, call: calls.Call) -> None:
        self._call = call
        self._connection: AsyncConnection | None = None
        self._answer: Answer | None = None
        self._opening: asyncio.Task[None] | None = None
        self._cancelled = False
        connection = client.connected()
        if connection is not None:
            self._begin(connection)
        else:
            self._opening = asyncio.get_running_loop().create_task(self._open(client))
            self._opening.add_done_callback(_retrieve)

    def __repr__(self) -> str:
        state = f"{self._call.method}, connecting" if self._answer is None else repr(self._answer)
        return f"<AsyncStream {state}>"

    def _begin(self, connection: AsyncConnection) -> Answer:
        self._connection = connection
        self._answer = connection.begin(self._call)
        return self._answer

    async def _open(self, client: AsyncClient) -> None:
        self._begin(await client.connect())

    async def _opened(self) -> tuple[AsyncConnection, Answer]:
        if self._answer is None:
            if self._cancelled or self._opening is None:
                raise CancelledError
            await self._opening
        assert self._connection is not None
        assert self._answer is not None
        return self._connection, self._answer

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        try:
            connection, answer = await self._opened()
            while await self._wait_item(connection, answer):
                yield answer.take()  # type: ignore[misc]  # pyright: ignore[reportReturnType]
        finally:
            self.cancel()
        if answer.error is not None and not answer.cancelled:
            raise answer.error

    async def _wait_item(self, connection: AsyncConnection, answer: Answer) -> bool:
        """Wait for something to take; False when nothing will come any more."""
        while True:
            self._report(answer)
            connection.grant(answer)
            if answer.has_items:
                return True
            if answer.done or answer.cancelled:
                return False
            await connection.wait(answer)

    def _report(self, answer: Answer) -> None:
        if self._call.progress is not None:
            for news in answer.take_progress():
                self._call.progress(news)

    async def result(self) -> ResultT:
        """Wait for the end and give the whole; raises the EnclaveError that the call ended with."""
        try:
            connection, answer = await self._opened()
            answer.collect()
            while not answer.done:
                self._report(answer)
                connection.grant(answer)
                await connection.wait(answer)
            self._report(answer)
        finally:
            self.cancel()  # does nothing after the end
        return answer.outcome()

    def __await__(self) -> Generator[Any, None, ResultT]:
        return self.result().__await__()

    @property
    def id(self) -> int | None:
        """The request's number in this client's session; None before the client is connected."""
        return None if self._answer is None else self._answer.id

    @property
    def done(self) -> bool:
        """Whether the end has been seen."""
        return self._answer is not None and self._answer.done

    def cancel(self) -> None:
        """Ask for the end now; does nothing when it has come already."""
        self._cancelled = True
        if self._connection is not None and self._answer is not None:
            self._connection.cancel(self._answer)
        elif self._opening is not None:
            self._opening.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _retrieve(task: asyncio.Task[None]) -> None:
    # Whoever waits for the stream gets the error; if nobody does, it is nobody's.
    if not task.cancelled():
        task.exception()


def _plain(socket: zmq.asyncio.Socket) -> zmq.Socket[bytes]:
    return cast(Any, zmq.Socket).shadow(socket)


class AsyncConnection:
    """The socket with its conversation and the task that reads; all end together."""

    def __init__(self, options: ClientOptions, address: str) -> None:
        self.address = address
        self.conversation = Conversation(options.name, program(), options.priority)
        self._loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = self._context.socket(zmq.DEALER)
        self._closed = False
        self._news: dict[int, asyncio.Event] = {}
        self._welcomed = asyncio.Event()
        set_options(self._socket)
        self._monitor: zmq.asyncio.Socket = self._socket.get_monitor_socket(MONITORED)
        # zmq.asyncio waits; what has come is then read without a future for each message.
        self._plain: zmq.Socket[bytes] = _plain(self._socket)
        self._plain_monitor: zmq.Socket[bytes] = _plain(self._monitor)
        self._socket.connect(address)
        self._send(self.conversation.greet())
        self._reader = self._loop.create_task(self._read(), name=f"enclave reader of {address}")

    def __repr__(self) -> str:
        return f"<AsyncConnection to {self.address}, {self.conversation!r}>"

    @property
    def usable(self) -> bool:
        """Whether calls may still begin here: it is open, and this is its loop."""
        return not self._closed and self.conversation.ending is None and self._loop is asyncio.get_running_loop()

    async def welcomed(self, options: ClientOptions) -> None:
        """Wait for the welcome; raises EnclaveError."""
        try:
            async with asyncio.timeout(options.timeout):
                await self._welcomed.wait()
        except TimeoutError:
            raise no_welcome(self.address, options.timeout) from None
        if self.conversation.ending is not None:
            raise self.conversation.ending

    def begin(self, call: calls.Call) -> Answer:
        """Send a call's request; raises EnclaveError."""
        answer, frames = self.conversation.begin(call)
        self._news[answer.id] = asyncio.Event()
        self._send(frames)
        return answer

    def grant(self, answer: Answer) -> None:
        """Send the credit that is due."""
        self._send(self.conversation.grant(answer))

    def cancel(self, answer: Answer) -> None:
        """Send a cancel if the call is open."""
        self._send(self.conversation.cancel(answer))
        self._wake([answer])

    def _send(self, frames: list[bytes] | None) -> None:
        if frames is not None and not self._closed:
            # Without a high-water mark nothing ever waits here, so the future is done already.
            cast(Any, self._socket).send_multipart(frames)

    async def wait(self, answer: Answer) -> None:
        """Wait until something came for the answer."""
        event = self._news.get(answer.id)
        if event is not None:
            await event.wait()
            event.clear()

    async def _read(self) -> None:
        poller = zmq.asyncio.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while self.conversation.ending is None:
            ready = dict(await poller.poll())
            # What the daemon said last comes before the news that it is gone.
            self._take_in(MESSAGES_A_TURN)
            if self._monitor in ready and is_lost(self._plain_monitor.recv_multipart()):
                self._take_in(None)
                self._wake(self.conversation.lost(lost_error()))
        self._welcomed.set()
        self._release()

    def _take_in(self, limit: int | None) -> None:
        count = 0
        while limit is None or count < limit:
            try:
                frames = self._plain.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._wake(self.conversation.receive(frames))
            if self.conversation.welcome is not None:
                self._welcomed.set()
            count += 1

    def _wake(self, answers: list[Answer]) -> None:
        for answer in answers:
            event = self._news.get(answer.id)
            if event is not None:
                event.set()
            if answer.done:
                self._news.pop(answer.id, None)

    async def close(self) -> None:
        """Leave. The daemon cancels what is open, also when the bye does not reach it."""
        open_ids = list(self._news)
        frames = self.conversation.leave()
        self._send(frames)
        for request_id in open_ids:
            self._news.pop(request_id).set()
        self._welcomed.set()
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        self._release()

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


class AsyncClient:
    """A connection to this user's daemon, which is started if it does not run.

    It connects at the first call or on entering an `async with` block, and again after the daemon was lost. It
    belongs to the loop in which it is used.
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
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; open requests are cancelled. A later call connects again."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            with suppress(asyncio.CancelledError, EnclaveError):
                await connecting
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def connected(self) -> AsyncConnection | None:
        """The connection if calls may begin on it now."""
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def connect(self) -> AsyncConnection:
        """The connection, made if need be; several callers share the attempt. Raises EnclaveError."""
        connection = self.connected()
        if connection is not None:
            return connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> AsyncConnection:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
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
            self._connection = connection
            return connection
        raise no_answer(address)

    def _stream(self, call: calls.Call) -> AsyncStream[Any, Any]:
        return AsyncStream(self, call)

    async def _ask(self, call: calls.Call) -> Any:
        return await self._stream(call).result()

    # --- running a model ---------------------------------------------------------------------------------------------

    def generate(
        self, model: ModelName | None, prompt: Prompt, **options: Unpack[SamplingOptions]
    ) -> AsyncStream[TextChunk, TextResult]:
        """Continue a prompt as it is: no template, BOS as the vocabulary says; token ids are taken unchanged. Without
        a model, the daemon's default one answers."""
        return self._stream(calls.generate(named(model), prompt, options))

    def chat(
        self,
        model: ModelName,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        schema: Message | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream[TextChunk, ChatResult]:
        """Answer a conversation, rendered by the model's template."""
        return self._stream(calls.chat(named(model), messages, tools, schema, options))

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
        return self._stream(calls.infill(named(model), prefix, suffix, order, options))

    async def prefix(
        self,
        name: str,
        model: ModelName,
        *,
        messages: Sequence[Message] = (),
        prompt: Prompt | None = None,
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> PrefillResult:
        """Keep a named beginning computed."""
        return await self._ask(calls.prefix(name, named(model), messages, prompt, tools, options))

    async def prefill(
        self,
        model: ModelName,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> PrefillResult:
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
    ) -> RerankResult:
        """Order documents by how well they answer a query."""
        return await self._ask(calls.rerank(named(model), query, documents, top, options))

    async def tokenize(self, model: ModelName, text: str, *, special: bool = True) -> list[int]:
        """A text's token ids; `special` adds those that the vocabulary asks for."""
        return list((await self._ask(calls.tokenize(named(model), text, special))).tokens)

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
        """The catalog."""
        return list((await self._ask(calls.models())).models)

    async def show(self, model: ModelName) -> ModelShow:
        """One model with what its header says."""
        return await self._ask(calls.show(named(model)))

    def pull(
        self, reference: str, *, progress: Callable[[Progress], object] | None = None
    ) -> AsyncStream[Progress, PullResult]:
        """Fetch a model: iterate for progress."""
        return self._stream(calls.pull(reference, progress))

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
        """Have a model ready: await it, or iterate for progress. `wait` is for the blocking client's signature."""
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
        return self._stream(calls.load(params, progress))

    async def unload(self, model: ModelName | None = None, *, instance: str | None = None) -> UnloadResult:
        """End a model's instances, or one by its id."""
        return await self._ask(calls.unload(named(model), instance))

    # --- the daemon --------------------------------------------------------------------------------------------------

    async def plugins(self) -> list[PluginInfo]:
        """What is installed, and what of it failed."""
        return list((await self._ask(calls.plugins())).plugins)

    async def why(
        self, request: str | None = None, *, model: ModelName | None = None, limit: int = 100
    ) -> list[WhyRecord]:
        """The story of a request or a model, or of whatever came last; oldest first."""
        return list((await self._ask(calls.why(request, named(model), limit))).records)

    async def info(self) -> DaemonInfo:
        """Which daemon answers: `.pid .version .endpoint .home`."""
        return await self._ask(calls.info())

    async def health(self) -> HealthResult:
        """How the daemon does."""
        return await self._ask(calls.health())

    def events(self, *topics: str) -> AsyncStream[EventChunk, None]:
        """News of models, instances, downloads or hardware, as they come; all of them if none is named."""
        return self._stream(calls.events(topics))

    async def shutdown(self, *, now: bool = False) -> None:
        """End the daemon; with `now` without waiting for what runs."""
        await self._ask(calls.shutdown(now))
