"""Whatever comes over the socket, the daemon lives, answers or hangs up, and serves a well-behaved client meanwhile."""

from __future__ import annotations

import json
import queue
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import psutil
import pytest
import zmq

from enclave.protocol import Credit, Error, Ping, Pong, Request, Role, Session, State, Welcome
from enclave.protocol.messages import Hello
from enclaved.daemon.broker.broker import REFUSED_MAX
from tests.conftest import StartDaemon
from tests.faults.zmtp import RawPeer
from tests.integration.wire import WireClient, anonymous_bytes, wait_for_instance
from tests.running import REPOSITORY, RunningDaemon

packb = cast("Callable[[object], bytes]", cast("Any", msgpack).packb)

VECTORS: list[dict[str, Any]] = json.loads(
    (REPOSITORY / "tests" / "protocol" / "vectors" / "messages.json").read_text(encoding="utf-8")
)
TOKEN = bytes(range(16))
"""In the vectors; a test puts the session's own in its place."""


class Honest:
    """A client that asks all the time, in a thread of its own, and demands to be answered well."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._daemon = daemon
        self._enough = threading.Event()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1)
        self._asking = self._pool.submit(self._ask)

    def _ask(self) -> None:
        try:
            with self._daemon.client(name="honest") as client:
                while not self._enough.is_set():
                    result = client.generate("fake:a", "x", temperature=0, max_tokens=4, deadline=30).result()
                    self._answers.put(result.text)
        finally:
            self._answers.put("")

    def is_served(self) -> None:
        """Waits for an answer to something that is asked from now on."""
        while not self._answers.empty():
            assert self._answers.get() == "1 2 "
        for _ in range(2):  # the first may have been asked before
            if self._answers.get(timeout=60) != "1 2 ":
                self._asking.result(60)

    def end(self) -> None:
        self._enough.set()
        self._asking.result(60)
        self._pool.shutdown()


@pytest.fixture
def honest(daemon: RunningDaemon) -> Iterator[Honest]:
    made = Honest(daemon)
    made.is_served()
    yield made
    made.is_served()
    made.end()
    assert daemon.process.poll() is None


def answer_to(client: WireClient, frames: list[bytes]) -> bytes:
    """Sends frames over an open session; the type of what comes of them: an error, or an answer, or only the pong."""
    client.send_frames(*frames)
    client.send_frames(packb({"type": "ping", "data": b"mark"}))
    kind = b""
    while True:
        header = cast("Any", msgpack).unpackb(client.socket.recv_multipart()[0])
        if header["type"] == "pong" and header.get("data") == b"mark":
            return kind or b"pong"
        kind = header["type"].encode()
        if header["type"] == "error" and header.get("id") is None:
            return kind


# --- garbage ---


def random_message(chance: random.Random) -> list[bytes]:
    """One to four frames; the first is sometimes the beginning of something."""
    frames = [chance.randbytes(chance.choice([0, 1, 2, 10, 200])) for _ in range(chance.randint(1, 4))]
    if chance.random() < 0.3:
        frames[0] = packb({"type": chance.choice(["hello", "request", "cancel", "bye"]), "id": chance.randint(0, 9)})
    return frames


def test_a_hundred_thousand_random_frames(daemon: RunningDaemon, honest: Honest) -> None:
    """Answered by errors about the session, and by nothing else; a connection that spoiled too many would be ended."""
    chance = random.Random(4)
    sent = 0
    with zmq.Context() as context:
        while sent < 100_000:
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.RCVTIMEO, 60_000)
                socket.connect(daemon.endpoint)
                for _ in range(REFUSED_MAX - 1):
                    frames = random_message(chance)
                    socket.send_multipart(frames)
                    sent += len(frames)
                socket.send_multipart([packb({"type": "ping", "data": b"mark"})])
                answers: list[dict[str, Any]] = []
                while not answers or answers[-1].get("data") != b"mark":
                    answers.append(cast("Any", msgpack).unpackb(socket.recv_multipart()[0]))
                errors = [answer for answer in answers if answer["type"] != "pong"]  # which may also come unasked
                assert errors
                assert all((answer["type"], answer.get("id")) == ("error", None) for answer in errors)
    assert len(daemon.log()) < 100_000


def test_a_flood_of_garbage_over_one_connection(daemon: RunningDaemon, honest: Honest) -> None:
    chance = random.Random(5)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.connect(daemon.endpoint)
        for _ in range(20_000):
            socket.send_multipart(random_message(chance))
        honest.is_served()
    assert len(daemon.log()) < 100_000


WRONG: list[object] = [None, True, -1, 2**64 - 1, 0.5, float("nan"), "x", b"x", [], {}, ["x"] * 300]


def variants(header: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The header with each field dropped, doubled, of a wrong type, huge, and nested 1,000 deep."""
    deep = b"\x91" * 1000 + b"\xc0"
    for name in header:
        others = {key: value for key, value in header.items() if key != name}
        pairs = b"".join(packb(key) + packb(value) for key, value in others.items())
        key = packb(name)

        def with_value(value: bytes, pairs: bytes = pairs, key: bytes = key, count: int = len(header)) -> bytes:
            return bytes([0x80 | count]) + pairs + key + value

        yield f"{name} dropped", packb(others)
        yield f"{name} doubled", bytes([0x80 | len(header) + 1]) + pairs + (key + packb(header[name])) * 2
        for wrong in WRONG:
            yield f"{name} is {str(wrong)[:20]}", with_value(packb(wrong))
        yield f"{name} huge", with_value(packb("x" * 10_000))
        yield f"{name} nested", with_value(deep)


def revived(value: Any, token: bytes) -> Any:
    """A vector's value as it travels: {"hex": …} are bytes, and the token is the session's."""
    if isinstance(value, dict):
        known = cast("dict[str, Any]", value)
        if set(known) == {"hex"}:
            found = bytes.fromhex(known["hex"])
            return token if found == TOKEN else found
        return {key: revived(item, token) for key, item in known.items()}
    return [revived(item, token) for item in cast("list[Any]", value)] if isinstance(value, list) else value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_vector_with_each_field_spoiled_is_answered(daemon: RunningDaemon, vector: dict[str, Any]) -> None:
    rest = [bytes.fromhex(frame) for frame in vector["frames"][1:]]
    with daemon.client() as honest:
        for name, _ in variants(vector["header"]):
            with WireClient(daemon.endpoint) as client:
                token = client.hello().token
                header = revived(vector["header"], token)
                spoiled = dict(variants(header))[name]
                kind = answer_to(client, [spoiled, *rest])
                assert kind in (b"error", b"result", b"progress", b"chunk", b"welcome", b"pong"), name
        assert honest.generate("fake:a", "x", temperature=0, max_tokens=4).result().text == "1 2 "


HUGE: list[tuple[str, list[bytes]]] = [
    ("10 MB of text as the type", [packb({"type": "x" * 10_000_000})]),
    ("10 MB of text as a method", [packb({"type": "request", "id": 1, "method": "x" * 10_000_000}), b""]),
    ("10 MB of text as a key", [packb({"x" * 10_000_000: 1})]),
    ("a map of a million elements", [packb({str(number): number for number in range(1_000_000)})]),
    ("a map that only says it has four billion elements", [b"\xdf\xff\xff\xff\xff"]),
    ("an array that only says it has four billion elements", [b"\x81\xa1a\xdd\xff\xff\xff\xff"]),
    ("nested a million deep", [b"\x91" * 1_000_000]),
    ("10,000 frames", [packb({"type": "ping"})] * 10_000),
]


@pytest.mark.parametrize("frames", [frames for _, frames in HUGE], ids=[name for name, _ in HUGE])
def test_huge_things_are_refused(daemon: RunningDaemon, honest: Honest, frames: list[bytes]) -> None:
    with WireClient(daemon.endpoint) as client:
        client.hello()
        client.send_frames(*frames)
        error = client.next()
        assert isinstance(error, Error)
        assert error.id is None
        assert error.code in ("bad_message", "too_large")


def test_what_is_above_a_limit_is_told_and_what_is_far_above_ends_the_connection(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_BODY_BYTES_MAX": "100000", "ENCLAVE_BROKER_FRAME_BYTES_MAX": "1000000"})
    with daemon.client() as honest, WireClient(daemon.endpoint) as client:
        token = client.hello().token
        header = packb({"type": "request", "id": 1, "method": "generate", "model": "fake:a", "token": token})
        client.send_frames(header, bytes(100_001))
        (error,) = [client.next()] if client.session.is_open(1) else read_raw_error(client)
        assert isinstance(error, Error)
        assert (error.code, error.id, error.numbers) == ("too_large", 1, {"size": 100_001, "size_max": 100_000})
        client.send_frames(header, bytes(1_000_001))
        client.hung_up_on()
        assert honest.generate("fake:a", "x", max_tokens=1).result().text


def read_raw_error(client: WireClient) -> list[Error]:
    """An error about a request that the client's own session would not have sent."""
    from enclave.protocol import Limits
    from enclave.protocol.messages import parse, read_raw

    error = parse(read_raw(client.socket.recv_multipart()), Limits())
    assert isinstance(error, Error)
    return [error]


def test_an_id_that_is_used_again_ends_the_session_and_no_other(daemon: RunningDaemon, honest: Honest) -> None:
    with WireClient(daemon.endpoint) as client:
        token = client.hello().token
        request_id = client.generate("fake:slow?tokens_per_second=20", max_tokens=100_000)
        header = {"type": "request", "id": request_id, "method": "daemon.info", "token": token}
        client.send_frames(packb(header), b"")
        while not isinstance(message := client.next(), Error):
            continue
        assert (message.id, message.code, message.field) == (None, "bad_message", "id")
        client.session = Session(Role.CLIENT)
        client.hello()


# --- many, fast, and gone ---


def test_five_hundred_clients_that_come_and_vanish(daemon: RunningDaemon, honest: Honest) -> None:
    def come_and_vanish(number: int) -> None:
        with WireClient(daemon.endpoint) as client:
            client.hello(f"guest {number}")
            if number % 3:
                client.generate("fake:slow?tokens_per_second=50", max_tokens=100_000)
                if number % 5 == 0:
                    client.next()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(come_and_vanish, range(500)))
    with daemon.client() as client:
        wait_for_instance(
            client,
            lambda instance: (
                "slow" in instance["model"] and not instance.get("leases", 0) and not instance.get("queued", 0)
            ),
        )
    assert psutil.Process(daemon.process.pid).num_fds() < 200


def test_a_client_that_asks_more_than_it_may_is_told_so_and_the_rest_is_answered(
    daemon: RunningDaemon, honest: Honest
) -> None:
    with WireClient(daemon.endpoint) as client:
        limits = client.hello().limits
        count = limits.open_requests + 200
        token = client.session.token
        for number in range(1, count + 1):
            header = {"type": "request", "id": number, "method": "generate", "model": "fake:a", "token": token}
            client.send_frames(packb({**header, "max_tokens": 1}), packb({"prompt": "x"}))
        ends: dict[int, str] = {}
        while len(ends) < count:
            header = cast("Any", msgpack).unpackb(client.socket.recv_multipart()[0])
            if header["type"] == "ping":
                client.send_frames(packb({"type": "pong", "data": header["data"], "token": token}))
            if header["type"] == "error":
                assert header["code"] == "busy"
                assert header["retry_after"] > 0
                assert header["retryable"]
            if header["type"] in ("error", "result"):
                assert header["id"] not in ends
                ends[header["id"]] = header["type"]
    assert set(ends) == set(range(1, count + 1))
    assert list(ends.values()).count("result") >= 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_who_asks_on_and_on_and_reads_nothing_is_hung_up_on_before_it_costs_much(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": "1000000"})
    with daemon.client() as honest, RawPeer(daemon.endpoint) as deaf:
        honest.generate("fake:a", "x", max_tokens=1).result()
        before_bytes = anonymous_bytes(daemon.process.pid)
        deaf.send(*Session(Role.CLIENT).send(Hello(version=1, client="deaf")))
        ping = packb({"type": "ping", "data": bytes(32)})
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deaf.send_for_ever(ping)
        assert anonymous_bytes(daemon.process.pid) - before_bytes < 8_000_000
        assert "it asks for more and reads nothing" in daemon.log()
        assert honest.generate("fake:a", "x", max_tokens=1).result().text


@pytest.mark.parametrize("way", ["frame", "message"])
def test_a_client_that_hangs_in_the_middle_of_a_message_holds_nobody_up(
    daemon: RunningDaemon, honest: Honest, way: str
) -> None:
    with RawPeer(daemon.endpoint) as stuck:
        hello = Session(Role.CLIENT).send(Hello(version=1, client="stuck"))
        if way == "frame":
            stuck.begin_frame(1_000_000, hello[0])
        else:
            stuck.send(*hello, unfinished=True)
        for _ in range(3):
            honest.is_served()


# --- who one is ---


@pytest.mark.parametrize("claimed", [b"admin", b"\0abc", b"\0abcde", b"\xff" * 255, b"a"])
def test_a_peer_that_claims_a_routing_id_is_hung_up_on(daemon: RunningDaemon, honest: Honest, claimed: bytes) -> None:
    with RawPeer(daemon.endpoint, claimed) as peer:
        peer.send(*Session(Role.CLIENT).send(Hello(version=1, client="claims")))
        assert b"welcome" not in peer.hung_up_on()


@pytest.mark.parametrize("claimed", [b"", b"\0abcd"], ids=["nothing", "an id of ZeroMQ's own form"])
def test_a_raw_peer_that_claims_nothing_is_served(daemon: RunningDaemon, claimed: bytes) -> None:
    """Also who claims an id as ZeroMQ gives them out, whichever it is: nothing tells it which are in use."""
    with RawPeer(daemon.endpoint, claimed) as peer:
        peer.send(*Session(Role.CLIENT).send(Hello(version=1, client="raw")))
        # The welcome is the first message; then this peer, which answers no heartbeat and says nothing, is left alone.
        received = b""
        while b"welcome" not in received:
            received += vars(peer)["_socket"].recv(4096)


def test_nobody_speaks_with_anothers_token(daemon: RunningDaemon) -> None:
    with WireClient(daemon.endpoint) as owner, WireClient(daemon.endpoint) as thief:
        token = owner.hello().token
        thief.hello()
        request_id = owner.generate("fake:slow?tokens_per_second=50", max_tokens=1000)
        thief.send_frames(packb({"type": "cancel", "id": request_id, "token": token}))
        error = thief.next()
        assert isinstance(error, Error)
        assert (error.code, error.id) == ("unauthorised", None)
        owner.send(Credit(id=request_id, chunks=1))
        assert owner.session.state is State.OPEN
        assert owner.next()


def test_a_client_that_floods_with_pongs_nobody_asked_for_gains_nothing(daemon: RunningDaemon, honest: Honest) -> None:
    with WireClient(daemon.endpoint) as client:
        client.hello()
        pong = client.session.send(Pong(data=struct.pack(">Q", 7)))
        for _ in range(10_000):
            client.send_frames(*pong)
        client.send(Ping(data=b"end"))
        assert client.next() == Pong(data=b"end")


def test_requests_in_a_flood_with_bodies_are_bounded_in_bytes(start_daemon: StartDaemon) -> None:
    """Bodies that nobody can work on yet: the model never loads."""
    daemon = start_daemon({"ENCLAVE_BROKER_QUEUED_BYTES_MAX": "10000000"})
    with WireClient(daemon.endpoint) as client:
        client.hello()
        codes: list[str] = []
        for _ in range(20):
            request_id = client.session.next_id()
            client.send(
                Request(id=request_id, method="generate", model="fake:stuck?load_seconds=1000", body=bytes(1_000_000))
            )
        while len(codes) < 10:
            message = client.next()
            if isinstance(message, Error):
                codes.append(message.code)
        assert codes == ["busy"] * 10
        assert isinstance(client.session.welcome, Welcome)
        if sys.platform == "linux":
            assert anonymous_bytes(daemon.process.pid) < 100_000_000
