"""No message is left lying because the edge that told of it was used up by something else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import zmq

from enclave.sockets import MESSAGES_A_TURN, LoopReader

SECONDS = 20.0

pytestmark = pytest.mark.asyncio


class Reader:
    """A socket in the loop that notes what comes, and its peer."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket, self.peer = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        self.socket.bind(f"inproc://{id(self)}")
        self.peer.connect(f"inproc://{id(self)}")
        self.came: asyncio.Queue[bytes] = asyncio.Queue()
        self.reader = LoopReader(self.socket, self.take)

    def take(self) -> None:
        self.came.put_nowait(self.socket.recv(zmq.NOBLOCK))

    def send(self, data: bytes) -> None:
        self.socket.send(data)
        self.reader.sent()

    async def next(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.came.get()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(0)


async def test_what_came_before_there_was_a_reader_is_read(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    reader = Reader(context)
    reader.peer.send(b"early")
    assert await reader.next() == b"early"
    reader.reader.close()


async def test_what_comes_while_something_is_sent_is_read(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    reader = Reader(context)
    for number in range(100):
        reader.peer.send(b"%d" % number)
        reader.send(b"out")
        assert await reader.next() == b"%d" % number
    reader.reader.close()


async def test_what_comes_while_taking_sends_and_finds_nothing_is_read(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    reader = Reader(context)
    take = reader.take
    turns: list[int] = []

    def sends_first() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            reader.peer.send(b"second")
            reader.send(b"out")
            raise zmq.Again
        take()

    reader.reader.close()
    reader.reader = LoopReader(reader.socket, sends_first)
    reader.peer.send(b"first")
    assert [await reader.next(), await reader.next()] == [b"first", b"second"]
    reader.reader.close()


async def test_many_messages_let_the_loop_do_other_things(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    reader = Reader(context)
    reader.peer.setsockopt(zmq.SNDHWM, 0)
    count = MESSAGES_A_TURN * 3
    for number in range(count):
        reader.peer.send(b"%d" % number)
    assert await reader.next() == b"0"
    assert reader.came.qsize() < count - 1
    assert [await reader.next() for _ in range(count - 1)] == [b"%d" % number for number in range(1, count)]
    reader.reader.close()


async def test_a_closed_reader_takes_nothing(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    reader = Reader(context)
    reader.reader.close()
    reader.reader.close()
    reader.peer.send(b"late")
    reader.reader.sent()
    await asyncio.sleep(0)
    assert reader.came.empty()
