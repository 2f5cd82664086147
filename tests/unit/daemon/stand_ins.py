"""Stand-ins for what surrounds the daemon's parts: a backend, a source, a child, a client's session."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from enclave.protocol.messages import Hello, Limits, Message, Ping, Pong, Request, Welcome
from enclave.protocol.methods import method
from enclave.protocol.session import Role, Session
from enclaved.core.ids import ClientId
from enclaved.daemon.broker.call import Call
from enclaved.daemon.broker.connection import Connection
from enclaved.daemon.broker.peer import Peer
from enclaved.daemon.catalog import Catalog, HeaderCache, Looker, Store
from enclaved.daemon.catalog.headers import ReadHeader
from enclaved.daemon.supervisor.child import Child, ChildEndedError
from enclaved.daemon.supervisor.worker import Worker
from enclaved.link.framing import LinkError
from enclaved.link.messages import FromChild, ToChild
from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.hookspecs import Backend, Source, SourceContext
from enclaved.plugin.model import ModelEntry, ModelFile, ModelHeader, ModelName


class StandInBackend(Backend):
    """A backend's light half that says what it is told to."""

    engine = "no_such_module:Engine"

    def __init__(
        self,
        name: str,
        suffix: str = ".gguf",
        *,
        refusal: str | None = None,
        estimate: MemoryUse | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.name = name
        self._suffix = suffix
        self._refusal = refusal
        self._estimate = estimate or MemoryUse(weights_bytes=10)
        self._failure = failure

    def recognises(self, file_name: str) -> bool:
        return file_name.endswith(self._suffix)

    def refuse(self, header: ModelHeader) -> str | None:
        return self._refusal

    def estimate(self, header: ModelHeader, placement: Placement) -> MemoryUse:
        if self._failure is not None:
            raise self._failure
        return self._estimate


class StandInSource(Source):
    """Offers the models it is given under their names."""

    def __init__(self, name: str, entries: Iterable[ModelEntry] = (), failure: Exception | None = None) -> None:
        self.name = name
        self.entries = list(entries)
        self.failure = failure

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        if self.failure is not None:
            raise self.failure
        return self.entries

    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        if self.failure is not None:
            raise self.failure
        return next((entry for entry in self.entries if entry.name == reference), None)


def an_entry(
    *paths: str, name: str | None = None, backends: tuple[str, ...] = (), header: ModelHeader | None = None
) -> ModelEntry:
    """A model of these files, named like the first."""
    files = tuple(ModelFile("weights", path) for path in paths)
    return ModelEntry(ModelName(name or paths[0]), "test", files, backends, header)


def context_of(folder: Path) -> SourceContext:
    return SourceContext(folder)


_stores: list[Store] = []


def a_store(path: Path | None = None) -> Store:
    """A store that is closed when the test ends."""
    store = Store(path)
    _stores.append(store)
    return store


def close_stores() -> None:
    while _stores:
        asyncio.run(_stores.pop().close())


def catalog_of(
    *sources: Source, aliases: Mapping[str, str] | None = None, default: str = "tiny", store: Store | None = None
) -> Catalog:
    """A catalog of these sources, at a time that stands still."""
    store = store or a_store()
    return Catalog(store, looker_of(*sources, store=store), aliases or {}, default)


async def no_header(*_: Any) -> ModelHeader:
    raise AssertionError("no header is wanted")


def looker_of(*sources: Source, store: Store) -> Looker:
    """Looks at these sources, at a time that stands still."""
    contexts = [(source, context_of(Path("/nowhere"))) for source in sources]
    return Looker(store, contexts, headers_by(no_header, store), lambda _: (), lambda: 1000.0, 10.0)


def headers_by(read: ReadHeader, store: Store | None = None) -> HeaderCache:
    """Headers that are read so."""
    return HeaderCache(read, store or a_store(), lambda: 1000.0)


class StandInClock:
    """Stands still until the test moves it; the loop's own decides when a wait ends."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class StandInChild:
    """A child without a process: keeps what is sent to it, and says and ends as the test tells."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.sent: list[ToChild] = []
        self.killed = False
        self.broke: LinkError | None = None
        self.walls: Mapping[str, object] = {}
        self.on_message: Callable[[FromChild], None] = lambda _: None
        self.on_exit: Callable[[ChildEndedError], None] = lambda _: None
        self.refuses: Exception | None = None
        """What sending raises."""
        self._exited: asyncio.Future[ChildEndedError] = asyncio.get_running_loop().create_future()

    @property
    def has_ended(self) -> bool:
        return self._exited.done()

    async def wait_greeted(self) -> None:
        return

    async def answers(self, seconds: float) -> bool:
        return not self.has_ended

    async def wait_exited(self) -> ChildEndedError:
        return await asyncio.shield(self._exited)

    def send(self, message: ToChild, descriptors: Sequence[int] = ()) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(message)

    def say(self, *messages: FromChild) -> None:
        """As the channel does it: who breaks the rules is ended."""
        for message in messages:
            if self.has_ended:
                return
            try:
                self.on_message(message)
            except LinkError as error:
                self.broke = error
                self.kill()

    def kill(self) -> None:
        self.killed = True
        self.end("was ended by SIGKILL")

    def end(self, how: str = "ended with exit code 0", tail: str = "") -> None:
        if not self.has_ended:
            ended = ChildEndedError(f"the process {how}", tail)
            self._exited.set_result(ended)
            self.on_exit(ended)

    async def stop(self, seconds: float) -> None:
        self.end()


def a_worker(child: StandInChild, backend: str = "x") -> Worker:
    return Worker(cast("Child", child), backend, asyncio.get_running_loop())


class Conversation:
    """A client's session and the daemon's connection, tied together, and one call of the client."""

    def __init__(
        self, *, credit: int = 64, name: str = "generate", client_id: str = "c1", limits: Limits | None = None
    ) -> None:
        limits = limits or Limits()
        numbers = itertools.count()
        self.gone = False
        self.deaf = False
        """Whether the client reads nothing for now."""
        self.started: list[Call] = []
        """Calls that were put off and are to be answered now."""
        self._unread: list[list[bytes]] = []
        self._reading = False
        self._arrived = asyncio.Event()
        self.client = Session(Role.CLIENT)
        self.connection = Connection(
            Peer(),
            ClientId(client_id),
            limits,
            self._post,
            lambda: next(numbers).to_bytes(8, "big"),
            self.started.append,
        )
        self._to_daemon(Hello(version=1, client="test"))
        frames = self.connection.session.send(Welcome(version=1, token=b"t" * 16, server="1", pid=1, limits=limits))
        self.client.receive(frames)
        self.received: list[Message] = []
        """What the client got, in order, without pings."""
        self._name = name
        self.call = self.another(credit=credit)

    def another(self, *, credit: int = 64, **fields: Any) -> Call:
        """One more call of the client."""
        (arrived,) = self._to_daemon(Request(id=self.client.next_id(), method=self._name, credit=credit, **fields))
        assert isinstance(arrived, Request)
        call = Call(arrived, method(self._name), self.connection.client, self.connection)
        self.connection.calls[arrived.id] = call
        return call

    def grant(self, message: Any) -> None:
        """The client sends something about a call."""
        self._to_daemon(message)
        call = self.connection.calls.get(message.id)
        if call is not None:
            call.pump()

    def listen(self) -> None:
        """The client reads again, what it was sent meanwhile first."""
        self.deaf = False
        self._read()

    def _post(self, frames: list[bytes]) -> None:
        """The broker's part: frames to the client, unless it has gone."""
        if self.gone:
            self.connection.leave()
            return
        self._unread.append(frames)
        if not self.deaf and not self._reading:
            self._read()

    def _read(self) -> None:
        self._reading = True
        while self._unread:
            for message in self.client.receive(self._unread.pop(0)):
                if isinstance(message, Ping):
                    (pong,) = self._to_daemon(Pong(data=message.data))
                    assert isinstance(pong, Pong)
                    self.connection.answered(pong)
                else:
                    self.received.append(message)
                    self._arrived.set()
        self._reading = False

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]

    async def wait_received(self, kind: type[Any]) -> None:
        """Waits until the client got a message of this kind."""
        while not self.of(kind):
            self._arrived.clear()
            await self._arrived.wait()

    def _to_daemon(self, message: Any) -> list[Message]:
        return self.connection.session.receive(self.client.send(message))
