"""A daemon for the client's tests: a real ROUTER on a real socket, driven by Session, that answers by script.

It runs in a thread of the test process. Tests set `answers[method]`, look at what arrived, and may let it vanish.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq

from enclave.paths import DaemonState, Places, places, private_folder, write_state
from enclave.protocol import (
    PROTOCOL_VERSION,
    Bye,
    Cancel,
    ChunkJoiner,
    Credit,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    Progress,
    RemoteProtocolError,
    Request,
    Result,
    Role,
    Session,
    Stage,
    Welcome,
    failure,
    write_body,
)
from enclave.protocol.bodies import DaemonInfo, GenerateResult, TextChunk, Usage

WAIT_SECONDS = 30.0
"""Only ends a test that has failed already."""


@dataclass
class Exchange:
    """One request and the way to answer it; used in the daemon's thread only."""

    daemon: ScriptedDaemon
    peer: bytes
    session: Session
    request: Request
    joiner: ChunkJoiner
    last: Message | None = None
    """Sent when every chunk is."""

    def send(self, message: Message) -> None:
        self.daemon.send(self.peer, self.session.send(message))

    def chunks(self, *texts: str, choice: int = 0) -> None:
        """Put chunks into the joiner and send what credit allows."""
        for text in texts:
            self.joiner.put(write_body(TextChunk(text=text, choice=choice)))
            self.flush()

    def flush(self) -> None:
        while len(self.joiner) and self.session.credit(self.request.id):
            chunk = self.joiner.take()
            assert chunk is not None
            self.send(chunk)
        if self.last is not None and not len(self.joiner):
            last, self.last = self.last, None
            self.send(last)

    def finish(self, reason: str = "stop", tokens: int = 0) -> None:
        body = write_body(GenerateResult(finish_reason=reason, usage=Usage(completion_tokens=tokens)))
        self.last = Result(id=self.request.id, model=self.request.model, device="cpu", queued_seconds=0.25, body=body)
        self.flush()


Answer = Callable[[Exchange], None]


class ScriptedDaemon:
    """Answers by `answers[method]`; an unknown method gets `unsupported`."""

    def __init__(self, address: str, limits: Limits) -> None:
        self.address = address
        self.limits = limits
        self.answers: dict[str, Answer] = {"generate": say_hello, "daemon.info": tell_info}
        self.greeting: Callable[[bytes], Message] = self._welcome
        self.exchanges: dict[tuple[bytes, int], Exchange] = {}
        self.errors: list[Exception] = []
        self._seen: list[Message] = []
        self._handled: list[Message] = []
        self._changed = threading.Condition()
        self._sessions: dict[bytes, Session] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.bind(address)
        self._wake = self._context.socket(zmq.PAIR)
        self._woken = self._context.socket(zmq.PAIR)
        self._wake.bind("inproc://wake")
        self._woken.connect("inproc://wake")
        self._thread = threading.Thread(target=self._run, name="scripted daemon")
        self._thread.start()

    def _welcome(self, peer: bytes) -> Message:
        token = peer.rjust(16, b"\0")
        return Welcome(version=PROTOCOL_VERSION, token=token, server="scripted", pid=os.getpid(), limits=self.limits)

    def do(self, job: Callable[[], None] | None) -> None:
        """Run something in the daemon's thread; None ends it."""
        self._jobs.put(job)
        self._wake.send(b"")

    def stop(self, *, linger_ms: int = 0) -> None:
        """Vanish: close the socket as the end of a process would."""
        if self._thread.is_alive():
            self.do(None)
            self._thread.join(WAIT_SECONDS)
            self._router.close(linger_ms)
            self._wake.close(0)
            self._woken.close(0)
            self._context.term()

    def seen(self, kind: type[Message]) -> list[Message]:
        with self._changed:
            return [message for message in self._seen if isinstance(message, kind)]

    def wait_seen(self, kind: type[Message], count: int = 1) -> list[Message]:
        """Wait until so many messages of the type have arrived and been answered."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: sum(isinstance(message, kind) for message in self._handled) >= count, WAIT_SECONDS
            )
            assert found, f"{count} of {kind.__name__} did not arrive"
        return self.seen(kind)

    def send(self, peer: bytes, frames: list[bytes]) -> None:
        try:
            self._router.send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._router in ready:
                peer, *frames = self._router.recv_multipart()
                try:
                    self._receive(peer, frames)
                except (RemoteProtocolError, AssertionError, KeyError) as error:
                    self.errors.append(error)
            if self._woken in ready:
                self._woken.recv()
                job = self._jobs.get()
                if job is None:
                    return
                job()

    def _receive(self, peer: bytes, frames: list[bytes]) -> None:
        session = self._sessions.setdefault(peer, Session(Role.DAEMON, self.limits))
        try:
            messages = session.receive(frames)
        except RemoteProtocolError as error:
            self.send(peer, session.refuse(error))
            if error.fatal:
                del self._sessions[peer]
            return
        for message in messages:
            with self._changed:
                self._seen.append(message)
            self._handle(peer, session, message)
            with self._changed:
                self._handled.append(message)
                self._changed.notify_all()

    def _handle(self, peer: bytes, session: Session, message: Message) -> None:
        if isinstance(message, Hello):
            self.send(peer, session.send(self.greeting(peer)))
        elif isinstance(message, Request):
            exchange = Exchange(self, peer, session, message, ChunkJoiner(message.id))
            self.exchanges[peer, message.id] = exchange
            self.answers.get(message.method, refuse)(exchange)
        elif isinstance(message, Credit):
            self.exchanges[peer, message.id].flush()
        elif isinstance(message, Cancel):
            exchange = self.exchanges[peer, message.id]
            exchange.joiner.drop()
            if exchange.request.method == "generate":
                exchange.finish("cancelled")
            else:
                exchange.send(failure(message.id, "cancelled"))
        elif isinstance(message, Ping):
            self.send(peer, session.send(Pong()))
        elif isinstance(message, Bye):
            del self._sessions[peer]


def say_hello(exchange: Exchange) -> None:
    exchange.send(Progress(id=exchange.request.id, stage=Stage.LOADING, fraction=0.5))
    exchange.chunks("Hel", "lo", "!")
    exchange.finish(tokens=3)


def tell_info(exchange: Exchange) -> None:
    address = exchange.daemon.address
    info = DaemonInfo(version="1", protocol=1, pid=os.getpid(), endpoint=address, home="/home", started=1.0)
    exchange.send(Result(id=exchange.request.id, body=write_body(info)))


def refuse(exchange: Exchange) -> None:
    exchange.send(failure(exchange.request.id, "unsupported"))


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A home of this test's own, which the clients find by the environment."""
    home = tmp_path / "home"
    monkeypatch.setenv("ENCLAVE_HOME", str(home))
    monkeypatch.delenv("ENCLAVE_DAEMON", raising=False)
    return places(os.environ)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Generator[Callable[..., ScriptedDaemon]]:
    made: list[ScriptedDaemon] = []

    def make(limits: Limits | None = None) -> ScriptedDaemon:
        made.append(ScriptedDaemon(f"ipc://{tmp_path}/d{len(made)}", limits or Limits()))
        return made[-1]

    yield make
    for daemon in made:
        daemon.stop()
    for daemon in made:
        assert not daemon.errors


@pytest.fixture
def daemon(make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]) -> ScriptedDaemon:
    """A scripted daemon that the clients find by the state file."""
    made = make_daemon()
    announce(made.address)
    return made


@pytest.fixture
def announce(where: Places) -> Callable[[str], None]:
    """Writes the state file for an address."""

    def write(address: str) -> None:
        private_folder(where.run)
        write_state(where, DaemonState(os.getpid(), "1", PROTOCOL_VERSION, address, 1.0))

    return write
