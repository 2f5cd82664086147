"""The ROUTER socket with real peers in this process: whatever they send, the others are served."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
import zmq
import zmq.asyncio

from enclave.protocol.messages import (
    Bye,
    Cancel,
    Credit,
    Error,
    Hello,
    Message,
    Ping,
    Pong,
    Request,
    RequestId,
    Result,
    Welcome,
)
from enclave.protocol.messages import Chunk as ChunkMessage
from enclave.protocol.session import Role, Session
from enclaved.daemon.broker import Broker, BrokerSettings, Call
from enclaved.daemon.broker.broker import CROSSED_MAX, FRAMES_HUNG_UP_ON, REFUSED_MAX
from enclaved.daemon.refusal import RefusalError

pytestmark = pytest.mark.asyncio

SECONDS = 20.0
REPOSITORY = Path(__file__).resolve().parents[4]
EXECUTABLE = str(Path(sys.executable).resolve())
packb = cast("Callable[[object], bytes]", cast("Any", msgpack).packb)


class Peer:
    """A client: its DEALER socket and its session."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, routing_id: bytes | None = None) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 2**31 - 1)
        if routing_id is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        self.session = Session(Role.CLIENT)

    def close(self) -> None:
        if not self.socket.closed:
            self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)

    async def send(self, message: Any) -> None:
        await self.socket.send_multipart(self.session.send(message))  # pyright: ignore[reportUnknownMemberType]

    async def send_raw(self, *frames: bytes) -> None:
        await self.socket.send_multipart(list(frames))  # pyright: ignore[reportUnknownMemberType]

    async def receive_raw(self) -> list[bytes]:
        async with asyncio.timeout(SECONDS):
            return await self.socket.recv_multipart()

    async def next(self) -> Message:
        async with asyncio.timeout(SECONDS):
            while True:
                frames = await self.socket.recv_multipart()
                if received := self.session.receive(frames):
                    return received[0]

    async def hello(self) -> Welcome:
        await self.send(Hello(version=1, client="test"))
        welcome = await self.next()
        assert isinstance(welcome, Welcome)
        return welcome

    async def hung_up_on(self) -> None:
        """Waits for the connection's end."""
        async with asyncio.timeout(SECONDS):
            await self._monitor.recv_multipart()

    async def round(self) -> None:
        """To the broker and back; what the broker asks on the way is answered."""
        await self.send(Ping())
        while isinstance(message := await self.next(), Ping):
            await self.send(Pong(data=message.data))
        assert isinstance(message, Pong)

    async def call(self, name: str = "daemon.info") -> int:
        request_id = self.session.next_id()
        await self.send(Request(id=request_id, method=name))
        return request_id


class Served:
    """A broker and the calls that came to it."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, broker: Broker) -> None:
        self._context = context
        self._endpoint = endpoint
        self.broker = broker
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.handle: Callable[[Call], None] = self.calls.put_nowait
        self.peers: list[Peer] = []

    def peer(self, routing_id: bytes | None = None) -> Peer:
        self.peers.append(Peer(self._context, self._endpoint, routing_id))
        return self.peers[-1]

    async def next_call(self) -> Call:
        async with asyncio.timeout(SECONDS):
            return await self.calls.get()

    @property
    def connections(self) -> int:
        return len(vars(self.broker)["_connections"])


@asynccontextmanager
async def _served(
    folder: Path, settings: BrokerSettings | None = None, uid: int | None = None
) -> AsyncGenerator[Served]:
    own: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context = zmq.asyncio.Context()
    endpoint = f"ipc://{folder}/s"
    async with asyncio.TaskGroup() as tasks:

        def handle(call: Call) -> None:
            served.handle(call)

        broker = Broker(own, handle, tasks, "1", settings)
        served = Served(context, endpoint, broker)
        broker.bind(endpoint, pid=1, uid=uid)
        try:
            yield served
        finally:
            for peer in served.peers:
                peer.close()
            context.term()
            broker.close()
            own.term()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("b")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users can reach too; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def _until(condition: Callable[[], bool], peer: Peer, session: Session | None = None) -> None:
    """Each ping is a round through the broker; the condition comes true by one of them or the test fails."""
    peer.session = session or peer.session
    async with asyncio.timeout(SECONDS):
        while not condition():
            await peer.round()


async def test_a_call_is_answered(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        await peer.hello()
        request_id = await peer.call()
        call = await served.next_call()
        call.result(Result(id=request_id, body=b"\x80"))
        assert await peer.next() == Result(id=request_id, body=b"\x80")
        assert served.broker.sessions == 1


GARBAGE: list[list[bytes]] = [
    [],
    [b""],
    [b"\xc1"],
    [b"\x80"],
    [b"\x91" * 5000],
    [b"x" * 100_000],
    [packb({"type": "request", "id": 1, "method": "daemon.info"}), b""],
    [packb({"type": "hello", "version": 99, "client": "x"})],
    [packb({"type": "hello"}), b"", b""],
    [packb({"type": "welcome"})],
    [b""] * 500,
]


@pytest.mark.parametrize("frames", GARBAGE)
async def test_garbage_ends_its_own_session_and_leaves_nothing_behind(short: Path, frames: list[bytes]) -> None:
    async with _served(short) as served:
        good, bad = served.peer(), served.peer()
        await good.hello()
        if frames:
            await bad.send_raw(*frames)
            answer = Session(Role.CLIENT)
            answer.send(Hello(version=1, client="test"))
            async with asyncio.timeout(SECONDS):
                (error,) = answer.receive(await bad.socket.recv_multipart())
            assert isinstance(error, Error)
            assert error.id is None
        assert served.broker.sessions == 1
        await good.call()
        await served.next_call()
        if frames:  # and who spoiled a session may begin another
            bad.session = Session(Role.CLIENT)
            await bad.hello()
            assert served.broker.sessions == 2


@pytest.mark.parametrize("routing_id", [b"admin", b"x", b"\x01abcd", b"y" * 255])
async def test_a_peer_that_chose_its_own_routing_id_is_hung_up_on(short: Path, routing_id: bytes) -> None:
    async with _served(short) as served:
        good, bad = served.peer(), served.peer(routing_id)
        await good.hello()
        await bad.send(Hello(version=1, client="x"))
        await bad.hung_up_on()
        await good.call()
        await served.next_call()
        assert served.connections == 1


@pytest.mark.parametrize("routing_id", [b"\0\0\0\0\0", b"\0abcd", b"\0\xff\xff\xff\xff"])
async def test_nothing_tells_where_zeromqs_own_ids_are(short: Path, routing_id: bytes) -> None:
    """An id of that form is taken for one that was given out, whichever it is: who could tell them apart could guess
    the next one, and a connection with an id that is taken ends libzmq's process."""
    async with _served(short) as served:
        await served.peer(routing_id).hello()


async def test_a_peer_of_another_user_is_hung_up_on(short: Path) -> None:
    async with _served(short) as served:
        good = served.peer()
        await good.hello()
        vars(served.broker)["_uid"] = os.getuid() + 1  # whoever comes from now on is of another user than the daemon
        bad = served.peer()
        await bad.send(Hello(version=1, client="x"))
        await bad.hung_up_on()
        await good.call()
        await served.next_call()


AS_ANOTHER_USER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from enclave.protocol import Hello, Role, Session
from tests.faults.zmtp import RawPeer
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    with RawPeer(sys.argv[1]) as peer:
        peer.send(*Session(Role.CLIENT).send(Hello(version=1, client="stranger")))
        assert b"welcome" not in peer.hung_up_on()
except ConnectionError:
    pass
print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system vouches for users on Linux")
@pytest.mark.parametrize("filtered", [True, False], ids=["by ZeroMQ", "by the broker"])
async def test_a_real_process_of_another_user_is_refused(open_to_all: Path, filtered: bool) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be two users")
    async with _served(open_to_all, uid=os.getuid() if filtered else None) as served:
        vars(served.broker)["_uid"] = os.getuid()
        (open_to_all / "s").chmod(0o666)
        good = served.peer()
        await good.hello()
        stranger = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            AS_ANOTHER_USER,
            f"ipc://{open_to_all}/s",
            str(REPOSITORY),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(SECONDS):
            said, _ = await stranger.communicate()
        assert said == (b"refused\n")
        await good.call()
        await served.next_call()
        assert served.connections == 1


async def test_who_spoils_session_after_session_is_hung_up_on(short: Path) -> None:
    async with _served(short) as served:
        good, bad = served.peer(), served.peer()
        await good.hello()
        for _ in range(REFUSED_MAX):
            await bad.send_raw(b"\xc1")
        await bad.hung_up_on()
        await good.call()
        await served.next_call()


async def test_what_was_under_way_when_a_session_ended_is_not_held_against_the_next(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        await peer.hello()
        await peer.send_raw(b"\xc1")
        for _ in range(REFUSED_MAX * 2):
            await peer.call()
        old, peer.session = peer.session, Session(Role.CLIENT)
        await peer.send(Hello(version=1, client="again"))
        async with asyncio.timeout(SECONDS):
            (error,) = old.receive(await peer.socket.recv_multipart())
        assert isinstance(error, Error)
        assert (error.id, error.code) == (None, "bad_message")
        assert isinstance(await peer.next(), Welcome)
        await peer.call()
        assert (await served.next_call()).client.name == "again"


async def test_a_second_wrong_hello_is_answered_like_the_first(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        for _ in range(3):
            peer.session = Session(Role.CLIENT)
            await peer.send(Hello(version=99, client="x"))
            error = await peer.next()
            assert isinstance(error, Error)
            assert error.code == "version_mismatch"


@pytest.mark.parametrize("ends", ["bye", "error"])
async def test_a_session_that_follows_one_whose_answers_were_not_read_is_answered(short: Path, ends: str) -> None:
    """Pings of the session before are never answered: the client drops what still comes of it."""
    async with _served(short, BrokerSettings(unread_bytes_max=64 * 1024)) as served:
        other, peer = served.peer(), served.peer()
        await other.hello()
        await peer.hello()
        request_id = await peer.call()
        call = await served.next_call()
        await peer.send(Credit(id=RequestId(request_id), chunks=100))
        await other.round()
        for _ in range(20):
            call.chunk(bytes(10_000), 1)
        if ends == "bye":
            await peer.send(Bye())
        else:
            await peer.send_raw(b"\xc1")
        peer.session = Session(Role.CLIENT)
        await peer.send(Hello(version=1, client="again"))
        while True:
            frames = await peer.receive_raw()
            if cast("Any", msgpack).unpackb(frames[0])["type"] == "welcome":
                peer.session.receive(frames)
                break
        await peer.call()
        ping = await peer.next()
        assert isinstance(ping, Ping)
        await peer.send(Pong(data=ping.data))
        assert (await served.next_call()).client.name == "again"


async def test_who_goes_on_and_on_after_its_session_has_ended_is_hung_up_on(short: Path) -> None:
    async with _served(short) as served:
        good, bad = served.peer(), served.peer()
        await good.hello()
        await bad.hello()
        request_id = await bad.call()
        await bad.send_raw(b"\xc1")
        for _ in range(CROSSED_MAX + 1):
            await bad.send(Credit(id=RequestId(request_id), chunks=1))
        await bad.hung_up_on()
        await good.call()
        await served.next_call()


async def test_a_message_of_very_many_frames_is_one_too_many(short: Path) -> None:
    async with _served(short) as served:
        good, bad = served.peer(), served.peer()
        await good.hello()
        await bad.hello()
        await bad.send_raw(*[b""] * (FRAMES_HUNG_UP_ON + 1))
        await bad.hung_up_on()
        await good.call()
        await served.next_call()


async def test_a_name_is_printable_and_on_one_line(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        # Persian has a joiner within words.
        await peer.send(Hello(version=1, client="editor\n2026 ERROR \x1b[31m \u2028 \u0645\u06cc\u200c\u062e"))
        await peer.next()
        await peer.call()
        name = (await served.next_call()).client.name
        assert name == "editor\ufffd2026 ERROR \ufffd[31m \ufffd \u0645\u06cc\u200c\u062e"


async def test_a_superseded_request_makes_room_for_the_newer(short: Path) -> None:
    async with _served(short, BrokerSettings(queued_bytes_max=2048)) as served:
        peer = served.peer()
        await peer.hello()
        for number in range(3):
            request = Request(id=peer.session.next_id(), method="generate", supersedes="doc", body=bytes(2000))
            await peer.send(request)
            call = await served.next_call()
            call.on_cancel = lambda call=call: call.error(RefusalError("cancelled", "x"))
            if number:
                error = await peer.next()
                assert isinstance(error, Error)
                assert (error.id, error.code) == (number, "cancelled")


async def test_what_a_client_asks_that_reads_nothing_is_answered_when_it_reads(short: Path) -> None:
    async with _served(short, BrokerSettings(unread_bytes_max=64 * 1024)) as served:
        other, peer = served.peer(), served.peer()
        await other.hello()
        await peer.hello()
        answered: list[int] = []

        def answer(call: Call) -> None:
            if call.request.method == "daemon.info":
                answered.append(call.request.id)
                call.result(Result(id=call.request.id, body=bytes(10_000)))
            else:
                served.calls.put_nowait(call)

        served.handle = answer
        for _ in range(100):
            await peer.call()
        await peer.call("daemon.health")  # to see that all before it have come: they are put off, and so is this
        await peer.send(Cancel(id=peer.session.next_id() - 1))
        await other.round()
        before = len(answered)
        results = 0
        while results < 100:
            message = await peer.next()
            if isinstance(message, Ping):
                await peer.send(Pong(data=message.data))
            elif isinstance(message, Result):
                results += 1
            else:
                assert isinstance(message, Error)
                assert (message.id, message.code) == (101, "cancelled")
        assert 6 <= before <= 10
        assert answered == list(range(1, 101))
        assert served.calls.empty()


async def test_who_asks_and_asks_and_reads_nothing_is_hung_up_on(short: Path) -> None:
    async with _served(short, BrokerSettings(unread_bytes_max=64 * 1024)) as served:
        good, bad = served.peer(), served.peer()
        await good.hello()
        await bad.hello()
        for _ in range(1500):
            await bad.send(Ping(data=bytes(32)))
        await bad.hung_up_on()
        await good.call()
        await served.next_call()


async def test_who_reads_may_ask_as_often_as_it_likes(short: Path) -> None:
    async with _served(short, BrokerSettings(unread_bytes_max=64 * 1024)) as served:
        peer = served.peer()
        await peer.hello()
        for number in range(3000):
            await peer.send(Ping(data=number.to_bytes(4, "big")))
            pong = await peer.next()
            while isinstance(pong, Ping):
                await peer.send(Pong(data=pong.data))
                pong = await peer.next()
            assert pong == Pong(data=number.to_bytes(4, "big"))


async def test_more_sessions_than_may_be_are_told_to_come_back(short: Path) -> None:
    async with _served(short, BrokerSettings(sessions_max=1)) as served:
        first, second = served.peer(), served.peer()
        await first.hello()
        await second.send(Hello(version=1, client="test"))
        error = await second.next()
        assert isinstance(error, Error)
        assert (error.code, error.id, error.retryable) == ("busy", None, True)
        assert error.retry_after
        for _ in range(REFUSED_MAX):  # asking again is no misbehaviour
            second.session = Session(Role.CLIENT)
            await second.send(Hello(version=1, client="test"))
            assert isinstance(await second.next(), Error)
        await first.send(Bye())
        await _until(lambda: served.broker.sessions == 0, first, Session(Role.CLIENT))
        second.session = Session(Role.CLIENT)
        await second.hello()


async def test_requests_that_wait_are_bounded_in_bytes_until_somebody_takes_them(
    short: Path,
) -> None:
    async with _served(short, BrokerSettings(queued_bytes_max=2048)) as served:
        peer = served.peer()
        welcome = await peer.hello()
        assert welcome.limits.queued_bytes == 2048
        for _ in range(2):
            await peer.send(Request(id=peer.session.next_id(), method="generate", body=bytes(1000)))
        first = await served.next_call()
        await served.next_call()
        await peer.send(Request(id=peer.session.next_id(), method="generate", body=bytes(1000)))
        error = await peer.next()
        assert isinstance(error, Error)
        assert (error.id, error.code) == (3, "busy")
        assert error.retry_after
        first.take_body()
        await peer.send(Request(id=peer.session.next_id(), method="generate", body=bytes(1000)))
        await served.next_call()


async def test_the_broker_knows_who_asks(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        await peer.hello()
        await peer.call()
        client = (await served.next_call()).client
        assert client.name == "test"
        if sys.platform == "linux":
            assert client.pid == os.getpid()
            assert client.program == EXECUTABLE
            assert str(client) == f"test (pid {client.pid}, {client.program})"


@pytest.mark.parametrize("open_calls", [0, 3])
@pytest.mark.parametrize("way", ["bye", "vanish"])
async def test_a_client_that_goes_is_forgotten_and_its_calls_are_cancelled(
    short: Path, way: str, open_calls: int
) -> None:
    async with _served(short) as served:
        good, gone = served.peer(), served.peer()
        await good.hello()
        await gone.hello()
        calls: list[Call] = []
        for _ in range(open_calls):
            await gone.call()
            calls.append(await served.next_call())
        if way == "bye":
            await gone.send(Bye())
        else:
            gone.close()
        await _until(lambda: served.broker.sessions == 1, good)
        assert all(call.wants_cancel for call in calls)
        for call in calls:
            call.result(Result(id=call.request.id))


async def test_a_client_that_only_pinged_and_vanished_is_forgotten(short: Path) -> None:
    async with _served(short) as served:
        good, gone = served.peer(), served.peer()
        await good.hello()
        await gone.send(Ping())
        assert isinstance(await gone.next(), Pong)
        assert served.connections == 2
        gone.close()
        await _until(lambda: served.connections == 1, good)


async def test_a_handler_that_raises_is_an_error_for_its_client_only(short: Path) -> None:
    async with _served(short) as served:

        def stumble(call: Call) -> None:
            raise RuntimeError("a defect")

        peer = served.peer()
        await peer.hello()
        served.handle = stumble
        request_id = await peer.call()
        error = await peer.next()
        assert isinstance(error, Error)
        assert (error.id, error.code) == (request_id, "internal")
        served.handle = served.calls.put_nowait
        await peer.call()
        await served.next_call()


UNSENDABLE: list[Callable[[Call], None]] = [
    lambda call: call.result(Result(id=call.request.id, body=bytes(40 * 1024 * 1024))),
    lambda call: call.result(Result(id=call.request.id, prompt_seconds=1e9)),
    lambda call: call.result(Result(id=call.request.id, model="x" * 5000)),
    lambda call: call.error(RefusalError("internal", "x", numbers={"a": float("nan")})),
    lambda call: call.error(RefusalError("internal", "x", numbers={"a": 2**70})),
    lambda call: call.error(RefusalError("internal", "x", retry_after=-1.0)),
    lambda call: call.chunk(b"x", 0),
]


@pytest.mark.parametrize("answer", UNSENDABLE)
async def test_an_answer_that_cannot_be_sent_is_an_error_and_no_silence(
    short: Path, answer: Callable[[Call], None]
) -> None:
    async with _served(short) as served:
        peer = served.peer()
        await peer.hello()
        request_id = await peer.call("generate")
        call = await served.next_call()
        answer(call)
        error = await peer.next()
        assert isinstance(error, Error)
        assert (error.id, error.code) == (request_id, "internal")
        call.chunk(b"x", 1)
        call.result(Result(id=request_id))
        await peer.send(Ping())
        assert isinstance(await peer.next(), Pong)


async def test_a_cancel_reaches_its_call_and_a_late_one_does_nothing(short: Path) -> None:
    async with _served(short) as served:
        peer = served.peer()
        await peer.hello()
        request_id = await peer.call("generate")
        call = await served.next_call()
        cancelled = asyncio.Event()
        call.on_cancel = cancelled.set
        cancel = peer.session.send(Cancel(id=request_id))  # pyright: ignore[reportArgumentType]
        await peer.send_raw(*cancel)
        async with asyncio.timeout(SECONDS):
            await cancelled.wait()
        call.chunk(b"x", 1)
        call.error(RefusalError("cancelled", "The request was cancelled."))
        error = await peer.next()
        assert isinstance(error, Error)
        assert not isinstance(error, ChunkMessage)
        await peer.send_raw(*cancel)
        await peer.send(Ping())
        assert isinstance(await peer.next(), Pong)
