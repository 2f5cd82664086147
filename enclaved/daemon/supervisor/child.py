"""One child process: its channel, its last words, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from enclaved.daemon.supervisor.channel import Channel
from enclaved.daemon.supervisor.launcher import Launched
from enclaved.link import LINK_VERSION
from enclaved.link.framing import LinkError
from enclaved.link.messages import FromChild, Hello, Ping, Pong, ToChild
from enclaved.sandbox.status import objections, read_walls_of

TAIL_BYTES_MAX = 4096
"""Of a child's stderr: room for an assertion and the lines that led to it."""
GREETING_SECONDS_MAX = 60.0
"""How long a child may take to say hello: a tenth of a second, much more on a machine that swaps."""
CLOSING_SECONDS = 1.0
"""How long a child that has closed its channel may take to end."""

logger = logging.getLogger("enclaved.supervisor")


class ChildEndedError(Exception):
    """The child's process has ended. The text says how; `tail` is what it last wrote to stderr."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.tail = tail


class WallsMissingError(Exception):
    """The child is not behind the walls it says it is; it was ended."""


class Child:
    """Watches a launched process. Messages go to `on_message`, except the greeting."""

    def __init__(self, launched: Launched, loop: asyncio.AbstractEventLoop) -> None:
        """Takes the process over. Raises OSError when it cannot be watched; it has been ended then."""
        self._process = launched.process
        self._loop = loop
        self._tail = bytearray()
        self._greeted: asyncio.Future[Hello] = loop.create_future()
        self._exited: asyncio.Future[ChildEndedError] = loop.create_future()
        self._broke: LinkError | None = None
        self._ponged: asyncio.Future[None] | None = None
        self._closing: asyncio.TimerHandle | None = None
        self.on_message: Callable[[FromChild], None] = lambda _: None
        self.on_exit: Callable[[ChildEndedError], None] = lambda _: None
        """Called once, when the process has exited."""
        self.walls: Mapping[str, object] = {}
        assert launched.process.stderr is not None
        self._stderr = launched.process.stderr
        try:
            self._watch()
        except OSError:
            # Nobody would ever notice its end, so it must not begin.
            launched.connection.close()
            launched.process.kill()
            launched.process.wait()
            self._stderr.close()
            raise
        os.set_blocking(self._stderr.fileno(), False)
        loop.add_reader(self._stderr, self._read_stderr)
        self._channel = Channel(launched.connection, loop, self._received, self._channel_ended)

    def __repr__(self) -> str:
        return f"<Child {self.pid}{' ended' if self.has_ended else ''}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._exited.done()

    async def wait_greeted(self) -> None:
        """Waits until the child has said which walls stand around it, and checks with the kernel that they do.

        Raises ChildEndedError, WallsMissingError.
        """
        await asyncio.wait(
            [self._greeted, self._exited], timeout=GREETING_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        if self.has_ended:
            raise self._exited.result()
        if not self._greeted.done():
            self.kill()
            raise ChildEndedError(f"the process did not say hello within {GREETING_SECONDS_MAX:.0f} s")
        hello = self._greeted.result()
        problems: Sequence[str] = ()
        if hello.link_version != LINK_VERSION:
            problems = [f"speaks version {hello.link_version} of the link, not {LINK_VERSION}"]
        elif sys.platform == "linux":
            try:
                problems = objections(read_walls_of(self.pid), hello.walls)
            except ProcessLookupError:
                raise await self.wait_exited() from None
            except (OSError, ValueError) as error:
                problems = [f"its walls cannot be read: {error}"]
        if problems:
            self.kill()
            raise WallsMissingError("; ".join(problems))

    async def answers(self, seconds: float) -> bool:
        """Whether the child's control channel is alive: it answers a ping within `seconds`."""
        self._ponged = self._loop.create_future()
        self.send(Ping(1))
        done, _ = await asyncio.wait([self._ponged, self._exited], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return self._ponged in done

    async def wait_exited(self) -> ChildEndedError:
        """Waits for the process's end and says how it came."""
        return await asyncio.shield(self._exited)

    def send(self, message: ToChild, descriptors: Sequence[int] = ()) -> None:
        """Sends a message; to a child that has ended, nothing."""
        self._channel.send(message, descriptors)

    def kill(self) -> None:
        """Ends the process at once."""
        if not self.has_ended:
            self._process.kill()

    async def stop(self, seconds: float) -> None:
        """Closes the channel, by which a child ends, and kills it when that takes longer than `seconds`."""
        self._channel.close()
        done, _ = await asyncio.wait([self._exited], timeout=seconds)
        if not done:
            self.kill()
            await self.wait_exited()

    def _received(self, message: FromChild) -> None:
        if isinstance(message, Hello):
            if not self._greeted.done():
                self.walls = message.walls
                self._greeted.set_result(message)
        elif isinstance(message, Pong):
            if self._ponged is not None and not self._ponged.done():
                self._ponged.set_result(None)
        else:
            self.on_message(message)

    def _channel_ended(self, error: LinkError | None) -> None:
        if error is not None:
            self._broke = error
            self.kill()
        elif not self.has_ended:
            self._closing = self._loop.call_later(CLOSING_SECONDS, self.kill)

    def _watch(self) -> None:
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)

            def exited() -> None:
                self._loop.remove_reader(descriptor)
                os.close(descriptor)
                self._reaped(self._process.wait())

            self._loop.add_reader(descriptor, exited)
            return
        waiting = self._loop.run_in_executor(None, self._process.wait)
        waiting.add_done_callback(lambda done: self._reaped(done.result()))

    def _reaped(self, code: int) -> None:
        if self._closing is not None:
            self._closing.cancel()
        # What the child said just before its end may still lie in the socket.
        self._channel.drain()
        self._channel.close()
        self._read_stderr()
        self._loop.remove_reader(self._stderr)
        self._stderr.close()
        tail = self._tail.decode("utf-8", "replace").strip()
        how = f"broke the rules of the link: {self._broke}" if self._broke is not None else _how(code)
        ended = ChildEndedError(f"the process {how}", tail)
        logger.info("child %d %s", self.pid, how)
        self._exited.set_result(ended)
        self.on_exit(ended)

    def _read_stderr(self) -> None:
        try:
            data = os.read(self._stderr.fileno(), 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr)
            return
        self._tail += data
        del self._tail[: max(0, len(self._tail) - TAIL_BYTES_MAX)]


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
