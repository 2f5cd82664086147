"""Real small children over a real socket pair: greeted, heard to the last word, and never left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enclaved.daemon.supervisor import child as children
from enclaved.daemon.supervisor.child import TAIL_BYTES_MAX, Child, ChildEndedError, WallsMissingError
from enclaved.daemon.supervisor.launcher import Launched
from enclaved.link.messages import Cancel, FromChild, Load, Ping, SetThreads, Warm, encode

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no inherited sockets of this kind"),
]

SECONDS = 20.0
PREAMBLE = """
import os, signal, socket, sys, threading, time
from enclaved.link import LINK_VERSION
from enclaved.link.messages import *
from enclaved.link.framing import Framer, frame
channel = socket.socket(fileno=int(sys.argv[1]))
def say(*messages):
    for message in messages:
        channel.sendall(encode(message))
def hear():
    framer = Framer()
    while data := channel.recv(65536):
        yield from map(decode_to_child, framer.feed(data))
hello = Hello(LINK_VERSION, os.getpid(), {})
for_ever = threading.Event().wait
"""


class Heard:
    """A child and what came from it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.messages: asyncio.Queue[FromChild] = asyncio.Queue()
        child.on_message = self.messages.put_nowait

    async def next(self) -> FromChild:
        async with asyncio.timeout(SECONDS):
            return await self.messages.get()

    async def ended(self) -> ChildEndedError:
        async with asyncio.timeout(SECONDS):
            return await self.child.wait_exited()


def _launch(program: str) -> Launched:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + program, str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stderr=subprocess.PIPE,
    )
    theirs.close()
    return Launched(process, ours)


def _start(program: str) -> subprocess.Popen[bytes]:
    """A process that ends with its standard input."""
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE)


@asynccontextmanager
async def _child(program: str) -> AsyncGenerator[Heard]:
    heard = Heard(Child(_launch(program), asyncio.get_running_loop()))
    try:
        yield heard
    finally:
        heard.child.kill()
        await heard.ended()


async def test_a_child_that_greets_can_be_talked_to() -> None:
    program = "say(hello)\nfor message in hear(): say(Pong(message.number))"
    async with _child(program) as heard:
        async with asyncio.timeout(SECONDS):
            await heard.child.wait_greeted()
        assert await heard.child.answers(SECONDS)
        assert await heard.child.answers(SECONDS)


async def test_a_child_that_hears_nothing_does_not_answer() -> None:
    async with _child("say(hello)\nfor_ever()") as heard:
        async with asyncio.timeout(SECONDS):
            await heard.child.wait_greeted()
        assert not await heard.child.answers(0.05)


async def test_a_child_of_another_link_version_is_ended() -> None:
    async with _child("say(Hello(99, 1, {}))\nfor_ever()") as heard:
        with pytest.raises(WallsMissingError, match="version 99"):
            await heard.child.wait_greeted()
        assert "SIGKILL" in (await heard.ended()).message


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of walls on Linux")
async def test_a_child_that_claims_walls_it_does_not_have_is_ended() -> None:
    walls = {"seccomp": True, "no_new_privs": True, "state": "full"}
    async with _child(f"say(Hello(LINK_VERSION, 1, {walls}))\nfor_ever()") as heard:
        with pytest.raises(WallsMissingError):
            await heard.child.wait_greeted()
        await heard.ended()


async def test_a_child_that_never_greets_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GREETING_SECONDS_MAX", 0.1)
    async with _child("for_ever()") as heard:
        with pytest.raises(ChildEndedError, match="hello"):
            await heard.child.wait_greeted()
        assert "SIGKILL" in (await heard.ended()).message


async def test_a_child_that_ends_before_it_greets_says_how() -> None:
    async with _child("sys.exit('no model today')") as heard:
        with pytest.raises(ChildEndedError, match="exit code 1") as ended:
            await heard.child.wait_greeted()
        assert "no model today" in ended.value.tail


@pytest.mark.parametrize(
    ("program", "how"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("os._exit(3)", "exit code 3")],
)
async def test_how_a_child_ended_is_told_once(program: str, how: str) -> None:
    async with _child("say(hello)\n" + program) as heard:
        told: list[ChildEndedError] = []
        heard.child.on_exit = told.append
        ended = await heard.ended()
        assert how in ended.message
        assert told == [ended]
        assert heard.child.has_ended
        heard.child.kill()
        heard.child.send(Ping(1))


async def test_the_last_words_are_kept_and_only_the_last() -> None:
    program = f"sys.stderr.write('first' + 'x' * {3 * TAIL_BYTES_MAX} + 'last'); sys.stderr.flush(); os._exit(1)"
    async with _child(program) as heard:
        tail = (await heard.ended()).tail
        assert tail.endswith("xlast")
        assert len(tail) <= TAIL_BYTES_MAX


async def test_what_a_child_said_before_its_end_is_heard() -> None:
    async with _child("say(hello, *[Warm(str(n)) for n in range(500)])\nos._exit(0)") as heard:
        await heard.ended()
        assert [await heard.next() for _ in range(500)] == [Warm(str(number)) for number in range(500)]


async def test_a_failed_send_loses_no_words_that_lie_in_the_socket() -> None:
    """A worker that says why it cannot load ends at once, and the daemon may be sending threads just then."""
    ours, theirs = socket.socketpair()
    process = _start("import sys; sys.stdin.read()")
    heard = Heard(Child(Launched(process, ours), asyncio.get_running_loop()))

    theirs.sendall(encode(Warm("why")))
    theirs.close()
    heard.child.send(SetThreads(1))
    assert await heard.next() == Warm("why")
    assert process.stdin is not None
    process.stdin.close()
    await heard.ended()


@pytest.mark.parametrize(
    "garbage",
    [
        "channel.sendall(b'\\xff' * 8)",
        "channel.sendall(frame(b'\\xc1'))",
        "channel.sendall(frame(b'\\x91' * 900 + b'\\xc0'))",
        "say(Ping(1))",
        "channel.sendall(b'\\x00' * 4)",
    ],
)
async def test_a_child_that_breaks_the_rules_is_ended_and_the_end_says_so(garbage: str) -> None:
    async with _child(f"say(hello, Warm('good'))\nnext(hear())\n{garbage}\nfor_ever()") as heard:
        assert await heard.next() == Warm("good")
        heard.child.send(Ping(1))
        assert "broke the rules" in (await heard.ended()).message


async def test_a_child_whose_message_cannot_be_handled_is_ended() -> None:
    """Whatever was read with it is lost: who waits for it must hear of an end."""

    def stumble(_: FromChild) -> None:
        raise RuntimeError("a defect of ours")

    async with _child("say(hello, Warm(None))\nfor_ever()") as heard:
        heard.child.on_message = stumble
        assert "could not be handled" in (await heard.ended()).message


async def test_an_end_is_told_also_when_the_last_words_cannot_be_handled() -> None:
    def stumble(_: FromChild) -> None:
        raise RuntimeError("a defect of ours")

    async with _child("say(hello, Warm(None))\nos._exit(0)") as heard:
        heard.child.on_message = stumble
        await heard.ended()


async def test_a_child_that_closes_its_channel_and_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "CLOSING_SECONDS", 0.05)
    async with _child("say(hello)\nchannel.close()\nfor_ever()") as heard:
        assert "SIGKILL" in (await heard.ended()).message


@pytest.mark.parametrize(("program", "how"), [("for _ in hear(): pass", "exit code 0"), ("for_ever()", "SIGKILL")])
async def test_stop_closes_the_channel_and_then_kills(program: str, how: str) -> None:
    async with _child("say(hello)\n" + program) as heard:
        await heard.child.wait_greeted()
        await heard.child.stop(SECONDS if "code" in how else 0.1)
        assert how in (await heard.ended()).message
        await heard.child.stop(0.1)


async def test_a_descriptor_goes_with_its_message_and_may_be_closed_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    program = """
import array
say(hello)
framer, descriptors = Framer(), []
while True:
    data, received, _, _ = socket.recv_fds(channel, 65536, 8)
    descriptors += received
    for payload in framer.feed(data):
        decode_to_child(payload)
        if descriptors:
            say(Warm(os.read(descriptors.pop(0), 100).decode()))
"""
    async with _child(program) as heard:
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        heard.child.send(Cancel("x" * 500_000))  # more than a socket takes, so that the load has to wait behind it
        heard.child.send(Load("m", "e", [["weights", "f", 7]], {}, {}, {}), [descriptor])
        os.close(descriptor)
        assert await heard.next() == Warm("content")


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("sent", [0, 1])
async def test_nothing_stays_open_after_a_child(tmp_path: Path, sent: int) -> None:
    (tmp_path / "file").write_text("content")
    before = _open_descriptors()
    async with _child("say(hello)\nfor_ever()") as heard:
        await heard.child.wait_greeted()
        with (tmp_path / "file").open() as file:
            heard.child.send(Cancel("x" * 500_000))
            for _ in range(sent):
                heard.child.send(Load("m", "e", [["weights", "f", 7]], {}, {}, {}), [file.fileno()])
    assert _open_descriptors() == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
async def test_a_message_that_cannot_be_written_leaves_no_descriptor_open(tmp_path: Path) -> None:
    async with _child("say(hello)\nfor_ever()") as heard:
        await heard.child.wait_greeted()
        with (tmp_path / "file").open("w") as file:
            before = _open_descriptors()
            for message, descriptors in (
                (Load("half a pair \ud800", "e", [["weights", "f", 7]], {}, {}, {}), [file.fileno()]),
                (Load("m", "e", [], {}, {}, {}), [file.fileno(), 1_000_000]),
            ):
                with pytest.raises(Exception):  # noqa: B017 - which one is another test's matter
                    heard.child.send(message, descriptors)
            assert _open_descriptors() == before


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="children are watched in another way")
async def test_a_child_that_cannot_be_watched_is_ended_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: int) -> int:
        raise OSError(24, "Too many open files")

    launched = _launch("for_ever()")
    monkeypatch.setattr(os, "pidfd_open", no_more)
    with pytest.raises(OSError, match="Too many"):
        Child(launched, asyncio.get_running_loop())
    assert launched.process.returncode is not None
    assert launched.connection.fileno() == -1


async def test_a_dead_child_whose_socket_somebody_else_fills_does_not_hold_the_loop_up() -> None:
    program = """
say(hello)
pid = os.fork()
if pid == 0:
    os.close(2)
    block = encode(Warm('x' * 60000)) * 4
    while True:
        channel.sendall(block)
os._exit(0)
"""
    async with _child(program) as heard:
        seen: list[Any] = []
        note: Callable[[FromChild], None] = seen.append
        heard.child.on_message = note
        await heard.ended()
        assert heard.child.has_ended
