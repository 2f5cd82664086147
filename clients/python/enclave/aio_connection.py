"""The asynchronous client's connection: one ZeroMQ socket with its conversation, read in the loop as messages come.

Everything runs in the loop in which it was made. Its blocking twin is connection.py.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import zmq

from enclave import calls
from enclave.connecting import ClientOptions, lost_error, no_connection, no_welcome, program
from enclave.conversation import Answer, Conversation
from enclave.dealer import Dealer, is_lost, send
from enclave.sockets import LoopReader


class AsyncConnection:
    """The socket with its conversation; both end together."""

    def __init__(self, options: ClientOptions, address: str) -> None:
        """Connect, without waiting. Raises EnclaveError."""
        self.address = address
        self.conversation = Conversation(options.name, program(), options.priority)
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._news: dict[Answer, asyncio.Event] = {}
        """Of each open answer; answers compare by identity."""
        self._welcomed = asyncio.Event()
        self._dealer = Dealer(self)
        try:
            self._dealer.open()
            self._dealer.socket.connect(address)
        except (zmq.ZMQError, OSError) as error:
            self._dealer.close()
            raise no_connection(address, error) from None
        except BaseException:
            self._dealer.close()
            raise
        self._socket, self._monitor = self._dealer.socket, self._dealer.monitor
        self._reader = LoopReader(self._socket, self._take, self._loop)
        self._monitor_reader = LoopReader(self._monitor, self._take_news, self._loop)
        self._flush()

    def __repr__(self) -> str:
        return f"<AsyncConnection to {self.address}, {self.conversation!r}>"

    @property
    def usable(self) -> bool:
        """Whether calls may still begin here: it is open, and this is its loop and its process."""
        if self._closed or self.conversation.ending is not None or self._process != os.getpid():
            return False
        return self._loop is asyncio.get_running_loop()

    async def welcomed(self, options: ClientOptions) -> None:
        """Wait for the welcome; raises EnclaveError."""
        try:
            async with asyncio.timeout(options.timeout):
                await self._welcomed.wait()
        except TimeoutError:
            raise no_welcome(self.address, options.timeout) from None
        self._raise_if_over()

    def _raise_if_over(self) -> None:
        if self.conversation.ending is not None:
            raise self.conversation.ending

    # --- calls -------------------------------------------------------------------------------------------------------

    def begin(self, call: calls.Call) -> Answer:
        """Send a call's request; raises EnclaveError."""
        self._raise_if_over()
        answer = self.conversation.begin(call, self._loop.time())
        self._begun(answer)
        return answer

    def begin_again(self, answer: Answer) -> None:
        """Send a displaced call's request; raises EnclaveError."""
        self._raise_if_over()
        if answer.displaced:
            self.conversation.begin_again(answer, self._loop.time())
            self._begun(answer)

    def _begun(self, answer: Answer) -> None:
        answer.place = self
        self._news[answer] = asyncio.Event()
        self._flush()

    def adopt(self, before: AsyncConnection) -> None:
        """Ask again what was lost with the connection before this one."""
        for answer in self.conversation.adopt(before.hand_over(), self._loop.time()):
            self._begun(answer)

    def hand_over(self) -> list[Answer]:
        """What is to be asked again on the next connection."""
        return self.conversation.hand_over() if self._process == os.getpid() else []  # the other process asks

    def take(self, answer: Answer) -> list[object]:
        """The next thing that iterating gives, if there is one, and send the credit that is due."""
        taken = answer.take()
        if answer.is_credit_due:
            self._grant(answer)
        return taken

    def collect(self, answer: Answer) -> None:
        """Nobody iterates over the answer any more."""
        answer.collect()
        self._grant(answer)

    def cancel(self, answer: Answer) -> None:
        """Send a cancel if the call is open."""
        self.conversation.cancel(answer)
        self._flush()
        self._wake([answer])

    def drop(self, answer: Answer) -> None:
        """Cancel what nobody can read any more. The garbage collector calls this, in any thread and in the middle of
        anything, so it is left to the loop."""
        if self._process == os.getpid():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(lambda: answer.place.cancel(answer))

    async def wait(self, answer: Answer) -> None:
        """Wait until something came for the answer."""
        event = self._news.get(answer)
        if event is not None and not answer.has_news:
            self._grant(answer)
            event.clear()
            await event.wait()

    def _grant(self, answer: Answer) -> None:
        self.conversation.grant(answer)
        self._flush()

    # --- reading and sending -----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        outbox = self.conversation.outbox
        if outbox and not self._closed:
            while outbox:
                send(self._socket, outbox.popleft())
            self._reader.sent()

    def _take(self) -> None:
        self._wake(self.conversation.receive(self._socket.recv_multipart(zmq.NOBLOCK)))
        self._flush()
        if not self._welcomed.is_set() and self.conversation.welcome is not None:
            self._welcomed.set()
        if self.conversation.ending is not None:
            self._release()

    def _take_news(self) -> None:
        if is_lost(self._monitor.recv_multipart(zmq.NOBLOCK)):
            # What the daemon said last comes before the news that it is gone.
            try:
                while not self._closed:
                    self._take()
            except zmq.Again:
                self._wake(self.conversation.lost(lost_error()))
                self._release()

    def _wake(self, answers: list[Answer]) -> None:
        for answer in answers:
            event = self._news.get(answer)
            if event is not None:
                event.set()
                if answer.done or answer.displaced:
                    del self._news[answer]

    async def close(self) -> None:
        """Leave. The daemon cancels what is open, also when the bye does not reach it."""
        if self._process != os.getpid():
            return
        self.conversation.leave()
        if self._loop is asyncio.get_running_loop():
            self._flush()
        self._release()

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake(list(self._news))
        self._welcomed.set()
        if not self._loop.is_closed():
            self._reader.close()
            self._monitor_reader.close()
        self._dealer.close()
