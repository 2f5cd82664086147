"""The blocking client's connection: one ZeroMQ socket with its conversation; no thread of its own.

Any thread may use it. One of those that wait reads the socket, for all of them (leader and followers): it takes in what
comes and wakes the others, and when it has what it waited for, another goes on reading. A thread that has something to
send while another reads puts it into the outbox and wakes the reader.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from math import ceil
from types import TracebackType

import zmq

from enclave import calls
from enclave.connecting import ClientOptions, lost_error, no_connection, no_welcome, program
from enclave.conversation import Answer, Conversation
from enclave.dealer import Dealer, is_lost, send
from enclave.exceptions import ConnectionLostError

MESSAGES_A_TURN = 256
"""Taken in before the threads that wait look at what has come."""
WAKES_A_TURN = 4096
"""Bytes, one for each time that a thread woke the one that reads."""


class _Whole:
    """Between a message's counting and its sending, or its reading and its counting, nothing may come in between.

    Ctrl-C may still do. Then the two sides no longer agree, so this connection ends and the next call makes a new
    one. Expected errors are raised before anything is counted.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.go_on_breaking_off()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._connection.break_off()


class Connection:
    """The socket with its conversation; both end together."""

    def __init__(self, options: ClientOptions, address: str) -> None:
        """Connect, without waiting. Raises EnclaveError."""
        self.address = address
        self.process = os.getpid()
        self.conversation = Conversation(options.name, program(), options.priority)
        # Reentrant: a stream that is collected as garbage cancels itself, at whatever moment.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._leader: object | None = None
        """Stands for the call that waits in poll, so that the sockets are its thread's alone."""
        self._is_sending = False
        """Whether the outbox is being emptied: what a garbage collection in the middle of it adds goes along."""
        self._is_broken = False
        """Whether Ctrl-C came in the middle of a message."""
        self._closed = False
        self._dealer = Dealer(self)
        self._poller = zmq.Poller()
        try:
            self._dealer.open()
            self._socket, self._monitor = self._dealer.socket, self._dealer.monitor
            self._wake, self._woken = self._dealer.besides = socket.socketpair()
            self._wake.setblocking(False)
            self._woken.setblocking(False)
            for each in (self._socket, self._monitor, self._woken):
                self._poller.register(each, zmq.POLLIN)
            self._socket.connect(address)
            with self._held, _Whole(self):
                self._flush()
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise no_connection(address, error) from None
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Connection to {self.address}, {self.conversation!r}>"

    def welcomed(self, options: ClientOptions, deadline: float, given_up: Callable[[], bool]) -> None:
        """Wait for the welcome until `deadline` (monotonic), or until it is given up: who changes that calls `wake`.
        Raises EnclaveError."""
        self._wait_until(lambda: self.conversation.welcome is not None or given_up(), deadline)
        self._raise_if_over()
        if self.conversation.welcome is None:
            raise no_welcome(self.address, options.timeout)

    def wake(self) -> None:
        """Have those that wait look whether they still have to."""
        with self._held:
            if self._leader is not None and not self._closed:
                self._wake_reader()
            self._changed.notify_all()

    @property
    def usable(self) -> bool:
        """Whether calls may still begin here."""
        return not self._closed and self.conversation.ending is None and not self.is_inherited

    def look(self) -> bool:
        """Whether calls may begin here, after a look at what has come: a daemon that ended is noticed by it."""
        if self.usable:
            with self._held, _Whole(self):
                # What was so before the lock may be over now.
                if self.usable and self._leader is None and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    self._take_in({self._monitor})
        return self.usable

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self.process != os.getpid()

    @property
    def _held(self) -> AbstractContextManager[bool]:
        """The lock. Raises ConnectionLostError after a fork: a thread that is not here may have held it.

        It is taken in the frame that uses it, so that Ctrl-C cannot come between the taking and the `with`.
        """
        if self.is_inherited:
            raise ConnectionLostError("the connection belongs to the process that this one was forked from")
        return self._lock

    def _raise_if_over(self) -> None:
        if self.conversation.ending is not None:
            raise self.conversation.ending

    # --- calls -------------------------------------------------------------------------------------------------------

    def begin(self, call: calls.Call) -> Answer:
        """Send a call's request; raises EnclaveError."""
        with self._held, _Whole(self):
            self._raise_if_over()
            answer = self.conversation.begin(call, time.monotonic())
            answer.place = self
            self._flush()
            return answer

    def begin_again(self, answer: Answer) -> None:
        """Send a displaced call's request; raises EnclaveError."""
        with self._held, _Whole(self):
            self._raise_if_over()
            if answer.displaced:
                answer.place = self
                self.conversation.begin_again(answer, time.monotonic())
                self._flush()

    def adopt(self, before: Connection) -> None:
        """Ask again what was lost with the connection before this one; until then, that one's `close` ends it."""
        if before.is_inherited:
            return  # the other process asks
        with before._held:
            displaced = before.conversation.unasked
        with self._held, _Whole(self):
            for answer in displaced:
                answer.place = self
            self.conversation.adopt(displaced, time.monotonic())
            self._flush()
        with before._held:
            before.conversation.hand_over()

    def take(self, answer: Answer) -> list[object]:
        """The next thing that iterating gives, if there is one, and send the credit that is due."""
        with self._held, _Whole(self):
            taken = answer.take()
            if answer.is_credit_due:
                self._grant(answer)
            return taken

    def collect(self, answer: Answer) -> None:
        """Nobody iterates over the answer any more."""
        with self._held, _Whole(self):
            answer.collect()
            self._grant(answer)

    def cancel(self, answer: Answer) -> None:
        """Send a cancel if the call is open."""
        if answer.done or self.is_inherited:
            return
        with self._held, _Whole(self):
            self.conversation.cancel(answer)
            self._flush()
            self._changed.notify_all()

    def wait(self, answer: Answer) -> None:
        """Wait until there is news of an answer. Ctrl-C here leaves everything as it was."""
        self._wait_until(lambda: answer.has_news or self._granted(answer), None)

    def _granted(self, answer: Answer) -> bool:
        """Sends the credit that is due; never what is waited for. The lock is held."""
        self._grant(answer)
        return False

    def _grant(self, answer: Answer) -> None:
        self.conversation.grant(answer)
        self._flush()

    # --- reading and sending -----------------------------------------------------------------------------------------

    def _wait_until(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Wait until it is so, the conversation is over, or the deadline (monotonic) has passed."""
        me = object()
        while True:
            seconds = None if deadline is None else deadline - time.monotonic()
            led = False
            try:
                with self._held:
                    with _Whole(self):
                        if ready() or self.conversation.ending is not None or (seconds is not None and seconds <= 0):
                            return
                    if self._leader is not None:
                        self._changed.wait(seconds)
                        continue
                    led = True
                    self._leader = me
                came = self._poller.poll(None if seconds is None else ceil(seconds * 1000))
                with self._held, _Whole(self):
                    self._take_in({source for source, _ in came})
            finally:
                if led:
                    try:
                        self._step_down(me)
                    except BaseException:
                        self._step_down(me)  # Ctrl-C again, in the middle of it
                        raise

    def _step_down(self, me: object) -> None:
        with self._held:
            # Another may lead already: its turn begins as soon as the lock is free.
            if self._leader is me:
                self._leader = None
                if self.conversation.ending is not None:
                    self._release()
            self._changed.notify_all()

    def _take_in(self, came: set[object]) -> None:
        self._leader = None  # the sockets are whoever holds the lock's again
        with suppress(BlockingIOError):
            self._woken.recv(WAKES_A_TURN)
        self._flush()
        if self.conversation.ending is None:
            # What the daemon said last comes before the news that it is gone.
            self._receive(MESSAGES_A_TURN)
            if self._monitor in came and is_lost(self._monitor.recv_multipart()):
                self._receive(None)
                self.conversation.lost(lost_error())
            self._flush()
        if self.conversation.ending is not None:
            self._release()

    def _receive(self, limit: int | None) -> None:
        count = 0
        while limit is None or count < limit:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.conversation.receive(frames)
            count += 1

    def _flush(self) -> None:
        """Send what the outbox holds, or have the thread that reads do it."""
        outbox = self.conversation.outbox
        if not outbox or self._closed:
            return
        if self._leader is not None:
            self._wake_reader()
        elif not self._is_sending:
            self._is_sending = True
            try:
                while outbox:
                    send(self._socket, outbox.popleft())
            finally:
                self._is_sending = False

    def _wake_reader(self) -> None:
        with suppress(BlockingIOError):  # then it has been woken more often than it has looked
            self._wake.send(b"\0")

    def break_off(self) -> None:
        """End at once, without a further word. The lock is held."""
        self._is_broken = True  # first: Ctrl-C may come again
        self.conversation.outbox.clear()
        self.conversation.lost(ConnectionLostError("interrupted in the middle of a message"), displace=False)
        self._end_soon()

    def go_on_breaking_off(self) -> None:
        """Do what was left when `break_off` was interrupted. The lock is held."""
        if self._is_broken and not self._closed:
            self.break_off()

    def _end_soon(self) -> None:
        """Close, or have the thread that reads do it."""
        if self._leader is not None:
            self._wake_reader()
        else:
            self._release()
        self._changed.notify_all()

    def close(self) -> None:
        """Leave. The daemon cancels what is open, also when the bye does not reach it."""
        if self.is_inherited:
            return
        with self._held:
            if self.conversation.welcome is None:
                self.conversation.outbox.clear()  # nobody may be there to take it
            self.conversation.leave()
            self._flush()
            self._end_soon()

    def _release(self) -> None:
        """Give the sockets up; once more when that was interrupted."""
        self._closed = True
        self._dealer.close()
