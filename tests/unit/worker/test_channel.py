"""The child's end of the link, in a process of its own as it always is: its end is the process's end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclaved.link.framing import Framer
from enclaved.link.messages import (
    Cancel,
    FromChild,
    Load,
    Ping,
    Pong,
    ToChild,
    Warm,
    decode_from_child,
    descriptors_of,
    encode,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no inherited sockets of this kind")

SECONDS = 20.0
PROGRAM = """
import os, socket, sys, threading
from enclaved.link.messages import Cancel, Load, Warm
from enclaved.worker.channel import Channel

channel = Channel(socket.socket(fileno=int(sys.argv[1])))

def handle(message, descriptors):
    if isinstance(message, Load):
        texts = [os.read(descriptor, 100).decode() for descriptor in descriptors]
        channel.send(Warm(" ".join(texts)))
    elif isinstance(message, Cancel) and message.request == "raise":
        raise RuntimeError("a handler that fails")
    else:
        channel.send(Warm(f"{type(message).__name__} {message.request}"))

threading.Thread(target=channel.receive_forever, args=(handle,), daemon=True).start()
channel.send(Warm("busy"))
threading.Event().wait()  # as busy as an engine in a step that never ends
"""


class Peer:
    """The daemon's end, blocking."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(theirs.fileno())], pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE
        )
        theirs.close()
        self._framer = Framer()
        self._messages: list[FromChild] = []

    def send(self, message: ToChild, *descriptors: int) -> None:
        data = encode(message)
        assert len(descriptors) == descriptors_of(message)
        sent = socket.send_fds(self.socket, [data], descriptors) if descriptors else self.socket.send(data)
        self.socket.sendall(data[sent:])

    def next(self) -> FromChild:
        while not self._messages:
            data = self.socket.recv(4096)
            assert data, "the child closed the channel"
            self._messages += map(decode_from_child, self._framer.feed(data))
        return self._messages.pop(0)

    def wait_ended(self) -> int:
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    assert peer.next() == Warm("busy")
    yield peer
    peer.close()


def test_a_ping_is_answered_while_the_main_thread_is_busy(peer: Peer) -> None:
    for number in (1, 2, 2**40):
        peer.send(Ping(number))
        assert peer.next() == Pong(number)


def test_messages_come_in_order_also_when_they_come_in_pieces(peer: Peer) -> None:
    data = b"".join(encode(Cancel(str(number))) for number in range(20))
    for start in range(0, len(data), 7):
        peer.socket.sendall(data[start : start + 7])
    assert [peer.next() for _ in range(20)] == [Warm(f"Cancel {number}") for number in range(20)]


def test_the_end_of_the_channel_ends_the_process(peer: Peer) -> None:
    peer.socket.close()
    assert peer.wait_ended() == 0


def test_the_end_in_the_middle_of_a_message_ends_the_process(peer: Peer) -> None:
    peer.socket.sendall(encode(Cancel("x" * 100))[:-1])
    peer.socket.close()
    assert peer.wait_ended() == 0


def test_descriptors_arrive_with_their_message(peer: Peer, tmp_path: Path) -> None:
    descriptors: list[int] = []
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(name)
        descriptors.append(os.open(tmp_path / name, os.O_RDONLY))
    files: list[list[str | int]] = [["weights", "a", 3], ["shard", "b", 3]]
    peer.send(Load("m", "e", files, {}, {}, {}), *descriptors[:2])
    peer.send(Load("m", "e", files[:1], {}, {}, {}), descriptors[2])
    assert [peer.next(), peer.next()] == [Warm("one two"), Warm("three")]
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", encode(Pong(1)), encode(Cancel("raise"))],
    ids=["a length too large", "no MessagePack", "a message for the other end", "a handler that fails"],
)
def test_a_reader_that_cannot_go_on_ends_the_process_and_says_why(peer: Peer, data: bytes) -> None:
    """A child that no longer listens would hold its model for ever."""
    peer.socket.sendall(data)
    assert peer.wait_ended() == 1
    assert peer.process.stderr is not None
    assert b"Error" in peer.process.stderr.read()


def test_descriptors_that_did_not_arrive_end_the_process(peer: Peer) -> None:
    peer.socket.sendall(encode(Load("m", "e", [["weights", "a", 3]], {}, {}, {})))
    assert peer.wait_ended() == 1
