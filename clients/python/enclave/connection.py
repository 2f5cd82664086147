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
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from math import ceil

import zmq

from enclave import calls
from enclave.connecting import ClientOptions, lost_error, no_welcome, program
from enclave.conversation import Answer, Conversation
from enclave.dealer import MONITORED, is_lost, send, set_options
from enclave.exceptions import ConnectionLostError

MESSAGES_A_TURN = 256
"""Taken in before the threads that wait look at what has come."""
WAKES_A_TURN = 4096
"""Bytes, one for each time that a thread woke the one that reads."""

_INHERITED: list[Connection] = []
"""Connections of the process that this one was forked from: nothing of them may be closed here."""


class Connection:
    """The socket with its conversation; both end together."""

    def __init__(self, options: ClientOptions, address: str, deadline: float) -> None:
        """Connect and wait for the welcome until `deadline` (monotonic). Raises EnclaveError."""
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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._closed = False
        set_options(self._socket)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(MONITORED)
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._poller = zmq.Poller()
        try:
            for each in (self._socket, self._monitor, self._woken):
                self._poller.register(each, zmq.POLLIN)
            self._socket.connect(address)
            with self._whole():
                self._flush()
            self._wait_until(lambda: self.conversation.welcome is not None, deadline)
            self._raise_if_over()
            if self.conversation.welcome is None:
                raise no_welcome(address, options.timeout)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Connection to {self.address}, {self.conversation!r}>"

    @property
    def usable(self) -> bool:
        """Whether calls may still begin here."""
        return not self._closed and self.conversation.ending is None and not self.is_inherited

    def look(self) -> bool:
        """Whether calls may begin here, after a look at what has come: a daemon that ended is noticed by it."""
        if self.usable:
            with self._whole():
                if self._leader is None and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    self._take_in({self._monitor})
        return self.usable

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self.process != os.getpid()

    def _raise_if_over(self) -> None:
        if self.conversation.ending is not None:
            raise self.conversation.ending

    # --- calls -------------------------------------------------------------------------------------------------------

    def begin(self, call: calls.Call) -> Answer:
        """Send a call's request; raises EnclaveError."""
        with self._whole():
            self._raise_if_over()
            answer = self.conversation.begin(call, time.monotonic())
            self._flush()
            return answer

    def begin_again(self, answer: Answer) -> None:
        """Send a displaced call's request; raises EnclaveError."""
        with self._whole():
            self._raise_if_over()
            self.conversation.begin_again(answer, time.monotonic())
            self._flush()

    def take(self, answer: Answer) -> list[object]:
        """The next thing that iterating gives, if there is one, and send the credit that is due."""
        with self._whole():
            taken = answer.take()
            if answer.is_credit_due:
                self._grant(answer)
            return taken

    def collect(self, answer: Answer) -> None:
        """Nobody iterates over the answer any more."""
        with self._whole():
            answer.collect()
            self._grant(answer)

    def cancel(self, answer: Answer) -> None:
        """Send a cancel if the call is open."""
        if answer.done or self.is_inherited:
            return
        with self._whole():
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
                with self._lock:
                    with self._whole():
                        if ready() or self.conversation.ending is not None or (seconds is not None and seconds <= 0):
                            return
                    if self._leader is not None:
                        self._changed.wait(seconds)
                        continue
                    self._leader, led = me, True
                came = self._poller.poll(None if seconds is None else ceil(seconds * 1000))
                with self._whole():
                    self._take_in({source for source, _ in came})
            finally:
                if led:
                    with self._lock:
                        # Another may lead already: its turn begins as soon as the lock is free.
                        if self._leader is me:
                            self._leader = None
                        self._changed.notify_all()

    def _take_in(self, came: set[object]) -> None:
        self._leader = None  # the sockets are whoever holds the lock's again
        with suppress(BlockingIOError):
            self._woken.recv(WAKES_A_TURN)
        self._flush()
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

    @contextmanager
    def _whole(self) -> Generator[None]:
        """Between a message's counting and its sending, or its reading and its counting, nothing may come in between.

        Ctrl-C may still do. Then the two sides no longer agree, so this connection ends and the next call makes a new
        one. Expected errors are raised before anything is counted.
        """
        if self.is_inherited:
            raise ConnectionLostError("the connection belongs to the process that this one was forked from")
        with self._lock:
            try:
                yield
            except Exception:
                raise
            except BaseException:
                self.conversation.lost(ConnectionLostError("interrupted in the middle of a message"), displace=False)
                self._end_soon()
                raise

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
            if self not in _INHERITED:
                _INHERITED.append(self)
            return
        with self._lock:
            if self._closed:
                return
            self.conversation.leave()
            self._flush()
            self._end_soon()

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()
        self._wake.close()
        self._woken.close()
