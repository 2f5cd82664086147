"""The blocking client: one ZeroMQ socket, no thread of its own; it reads the socket while a caller waits.

One thread at a time may use a Client. Streams of one client interleave: waiting for one takes in what comes for the
others. The asynchronous twin is aio.py; both are driven by conversation.py and calls.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import zmq

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
from enclave.exceptions import ConnectionLostError
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
"""Taken in before a waiting caller looks at what has come."""


class Stream(Generic[ItemT, ResultT]):
    """The answer to a call while it comes: iterate for its pieces, `result()` for the whole.

    Leaving a `for` loop early, leaving the `with` block or `cancel()` cancels the request. What came is kept by
    `result()`, not by a second iteration.
    """

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer

    def __repr__(self) -> str:
        return f"<Stream {self._answer!r}>"

    def __iter__(self) -> Iterator[ItemT]:
        try:
            while self._wait_item():
                yield self._answer.take()  # type: ignore[misc]  # pyright: ignore[reportReturnType]
        finally:
            self.cancel()
        if self._answer.error is not None and not self._answer.cancelled:
            raise self._answer.error

    def _wait_item(self) -> bool:
        """Wait for something to take; False when nothing will come any more."""
        answer = self._answer
        while True:
            self._report()
            if answer.has_items:
                self._connection.grant(answer)
                return True
            if answer.done or answer.cancelled:
                return False
            self._connection.grant(answer)
            self._connection.wait()

    def _report(self) -> None:
        progress = self._answer.call.progress
        if progress is not None:
            for news in self._answer.take_progress():
                progress(news)

    def result(self) -> ResultT:
        """Wait for the end and give the whole; raises the EnclaveError that the call ended with."""
        answer = self._answer
        answer.collect()
        try:
            while not answer.done:
                self._connection.grant(answer)
                self._connection.wait()
                self._report()
            self._report()
        finally:
            self.cancel()  # does nothing after the end
        return answer.outcome()

    @property
    def id(self) -> int:
        """The request's number in this client's session."""
        return self._answer.id

    @property
    def done(self) -> bool:
        """Whether the end has been seen."""
        return self._answer.done

    def cancel(self) -> None:
        """Ask for the end now; does nothing when it has come already."""
        self._connection.cancel(self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Connection:
    """The socket with its conversation; both end together."""

    def __init__(self, options: ClientOptions, address: str, deadline: float) -> None:
        """Connect and wait for the welcome until `deadline` (monotonic). Raises EnclaveError."""
        self.address = address
        self.process = os.getpid()
        self.conversation = Conversation(options.name, program(), options.priority)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._closed = False
        try:
            set_options(self._socket)
            self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(MONITORED)
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._poller.register(self._monitor, zmq.POLLIN)
            self._socket.connect(address)
            self._socket.send_multipart(self.conversation.greet())
            while self.conversation.welcome is None:
                self._raise_if_over()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise no_welcome(address, options.timeout)
                self.wait(remaining)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Connection to {self.address}, {self.conversation!r}>"

    @property
    def usable(self) -> bool:
        """Whether calls may still begin here."""
        return not self._closed and self.conversation.ending is None and self.process == os.getpid()

    def _raise_if_over(self) -> None:
        if self.conversation.ending is not None:
            raise self.conversation.ending

    def begin(self, call: calls.Call) -> Answer:
        """Send a call's request; raises EnclaveError."""
        with self._whole():
            answer, frames = self.conversation.begin(call)
            self._socket.send_multipart(frames)
            return answer

    def grant(self, answer: Answer) -> None:
        """Send the credit that is due."""
        with self._whole():
            self._send(self.conversation.grant(answer))

    def cancel(self, answer: Answer) -> None:
        """Send a cancel if the call is open."""
        with self._whole():
            self._send(self.conversation.cancel(answer))

    def _send(self, frames: list[bytes] | None) -> None:
        if frames is not None and not self._closed and self.process == os.getpid():
            self._socket.send_multipart(frames)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until something came, and take it in. Ctrl-C here leaves everything as it was."""
        self._raise_if_over()
        ready = dict(self._poller.poll(None if seconds is None else ceil(seconds * 1000)))
        with self._whole():
            # What the daemon said last comes before the news that it is gone.
            self._take_in(MESSAGES_A_TURN)
            if self._monitor in ready and is_lost(self._monitor.recv_multipart()):
                self._take_in(None)
                self.conversation.lost(lost_error())
        if self.conversation.ending is not None:
            self.close()

    def _take_in(self, limit: int | None) -> None:
        count = 0
        while limit is None or count < limit:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.conversation.receive(frames)
            count += 1

    @contextmanager
    def _whole(self) -> Generator[None]:
        """Between a message's counting and its sending, or its reading and its counting, nothing may interrupt.

        Ctrl-C may still do. Then the two sides no longer agree, so this connection ends and the next call makes a new
        one. Expected errors are raised before anything is counted.
        """
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.conversation.lost(ConnectionLostError("interrupted in the middle of a message"))
            self.close()
            raise

    def close(self) -> None:
        """Leave. The daemon cancels what is open, also when the bye does not reach it."""
        if self._closed:
            return
        self._closed = True
        frames = self.conversation.leave()
        if self.process != os.getpid():
            return  # a fork's copy: the sockets belong to the parent
        if frames is not None:
            self._socket.send_multipart(frames)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


class Client:
    """A connection to this user's daemon, which is started if it does not run.

    It connects at the first call or on entering a `with` block, and again after the daemon was lost. One thread at
    a time may use it.
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
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> Connection:
        connection = self._connection
        if connection is not None:
            if connection.usable:
                return connection
            self.close()
        deadline = time.monotonic() + self._options.timeout
        address = ""
        for _ in range(CONNECT_ATTEMPTS):
            address = find_address(self._options, max(0.0, deadline - time.monotonic()))
            try:
                self._connection = Connection(self._options, address, deadline)
            except ConnectionLostError:
                continue
            return self._connection
        raise no_answer(address)

    def _stream(self, call: calls.Call) -> Stream[Any, Any]:
        connection = self._connect()
        return Stream(connection, connection.begin(call))

    def _ask(self, call: calls.Call) -> Any:
        with self._stream(call) as stream:
            return stream.result()

    # --- running a model ---------------------------------------------------------------------------------------------

    def generate(
        self, model: ModelName | None, prompt: Prompt, **options: Unpack[SamplingOptions]
    ) -> Stream[TextChunk, TextResult]:
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
    ) -> Stream[TextChunk, ChatResult]:
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
    ) -> PrefillResult:
        """Keep a named beginning computed."""
        return self._ask(calls.prefix(name, named(model), messages, prompt, tools, options))

    def prefill(
        self,
        model: ModelName,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[Message] = (),
        **options: Unpack[RequestOptions],
    ) -> PrefillResult:
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
    ) -> RerankResult:
        """Order documents by how well they answer a query."""
        return self._ask(calls.rerank(named(model), query, documents, top, options))

    def tokenize(self, model: ModelName, text: str, *, special: bool = True) -> list[int]:
        """A text's token ids; `special` adds those that the vocabulary asks for."""
        return list(self._ask(calls.tokenize(named(model), text, special)).tokens)

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
        """The catalog."""
        return list(self._ask(calls.models()).models)

    def show(self, model: ModelName) -> ModelShow:
        """One model with what its header says."""
        return self._ask(calls.show(named(model)))

    def pull(
        self, reference: str, *, progress: Callable[[Progress], object] | None = None
    ) -> Stream[Progress, PullResult]:
        """Fetch a model: iterate for progress."""
        return self._stream(calls.pull(reference, progress))

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
        """Have a model ready. With `wait` it is when this returns; without, iterate for progress."""
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

    # --- the daemon --------------------------------------------------------------------------------------------------

    def plugins(self) -> list[PluginInfo]:
        """What is installed, and what of it failed."""
        return list(self._ask(calls.plugins()).plugins)

    def why(self, request: str | None = None, *, model: ModelName | None = None, limit: int = 100) -> list[WhyRecord]:
        """The story of a request or a model, or of whatever came last; oldest first."""
        return list(self._ask(calls.why(request, named(model), limit)).records)

    def info(self) -> DaemonInfo:
        """Which daemon answers: `.pid .version .endpoint .home`."""
        return self._ask(calls.info())

    def health(self) -> HealthResult:
        """How the daemon does."""
        return self._ask(calls.health())

    def events(self, *topics: str) -> Stream[EventChunk, None]:
        """News of models, instances, downloads or hardware, as they come; all of them if none is named."""
        return self._stream(calls.events(topics))

    def shutdown(self, *, now: bool = False) -> None:
        """End the daemon; with `now` without waiting for what runs."""
        self._ask(calls.shutdown(now))
