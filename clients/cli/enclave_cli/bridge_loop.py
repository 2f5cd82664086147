"""The pipes and the socket of `enclave bridge`, in one thread: waits for whichever has something, and moves the bytes.

What the bytes mean is bridging.py's matter. Nothing here waits but in one poll, and for a daemon that starts.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from math import ceil
from types import FrameType

import zmq

from enclave.connecting import (
    CONNECT_ATTEMPTS,
    CONNECT_SECONDS,
    ClientOptions,
    find_address,
    no_answer,
    no_welcome,
    program,
)
from enclave.dealer import MONITORED, is_lost, set_options
from enclave.exceptions import EnclaveError
from enclave.protocol.errors import LocalProtocolError
from enclave.protocol.messages import Hello
from enclave.protocol.session import SPOKEN
from enclave_cli.bridging import Bridge
from enclave_cli.errors import NOT_STARTED_HINT, ExitCode, speaks_of_starting, usage
from enclave_cli.stdout import OutputError

READ_BYTES = 64 * 1024
"""Of the client's lines at once: what a pipe of Linux holds."""
MESSAGES_A_TURN = 256
"""Taken from the daemon before standard input is looked at again."""


class Terminated(BaseException):
    """SIGTERM came."""


def bridge(options: ClientOptions, stdin: int | None, stdout: int) -> ExitCode:
    """Runs until the client has ended and everything is written. `stdin` is None where there is none.

    Raises CommandError for a name that cannot be said, BrokenPipeError when nobody reads any more, OutputError, and
    Terminated for SIGTERM. Whatever ends it, the daemon is told.
    """
    hello = Hello(
        version=SPOKEN.newest,
        version_min=SPOKEN.oldest,
        client=options.name,
        program=program(),
        priority=options.priority,
    )
    try:
        machine = Bridge(hello)
    except LocalProtocolError as error:
        raise usage(f"--name: {error.message}") from None
    with _terminating(), _not_blocking(stdout):
        loop = _Loop(machine, options, stdin, stdout)
        try:
            return loop.run()
        finally:
            loop.close()


@contextmanager
def _terminating() -> Generator[None]:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _not_blocking(descriptor: int) -> Generator[None]:
    # The flag belongs to the open file, which may be a terminal that others write to as well.
    blocking = os.get_blocking(descriptor)
    try:
        os.set_blocking(descriptor, False)
        yield
    finally:
        os.set_blocking(descriptor, blocking)


class _Dealer:
    """A connection to the daemon, and the news of its end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_lost = False
        """Whether nothing more will come; what has come can still be read."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        set_options(self.socket)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(MONITORED)
        self.socket.connect(address)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self._context.term()


class _Loop:
    def __init__(self, machine: Bridge, options: ClientOptions, stdin: int | None, stdout: int) -> None:
        self._machine = machine
        self._options = options
        self._stdin = stdin
        self._stdout = stdout
        self._dealer: _Dealer | None = None
        self._attempts = 0
        """Connections in a row that ended before their welcome."""
        self._deadline = 0.0
        """For the welcome, monotonic."""
        self._failed = False
        """Whether no daemon could be reached at the very start: then there is no more to it than to say so."""

    def run(self) -> ExitCode:
        if self._stdin is None:
            self._machine.end_input()
        try:
            self._connect()
        except EnclaveError as error:
            self._unreachable(error)
        while not self._settle():
            self._wait()
        return ExitCode.UNREACHABLE if self._failed else ExitCode.OK

    def close(self) -> None:
        """Leave. The daemon cancels what is open, also when the bye does not reach it."""
        self._machine.leave()
        self._send()
        self._disconnect()

    def _settle(self) -> bool:
        """Does what can be done without waiting; whether nothing is left to be done at all."""
        machine = self._machine
        self._write()
        while machine.wants_session and not self._failed:
            self._begin()
            self._write()
        self._send()
        return (machine.is_done or self._failed) and not machine.waiting_bytes

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        machine, dealer = self._machine, self._dealer
        poller = zmq.Poller()
        # Its errors are told without being asked for: a reader that has gone is noticed also when there is no answer.
        poller.register(self._stdout, zmq.POLLERR | (zmq.POLLOUT if machine.waiting_bytes else 0))
        if self._stdin is not None and machine.wants_input and not self._failed:
            poller.register(self._stdin, zmq.POLLIN)
        seconds = None
        if dealer is not None:
            if not dealer.is_lost:
                poller.register(dealer.monitor, zmq.POLLIN)
            if machine.wants_frames:
                poller.register(dealer.socket, zmq.POLLIN)
                seconds = 0.0 if dealer.is_lost else None
            if machine.is_greeting and seconds is None:
                seconds = max(0.0, self._deadline - time.monotonic())
        came: dict[object, int] = dict(poller.poll(None if seconds is None else ceil(seconds * 1000)))
        if came.get(self._stdout, 0) & zmq.POLLERR:
            raise BrokenPipeError
        if dealer is not None:
            self._hear(dealer, came)
        if self._stdin is not None and self._stdin in came:
            self._read(self._stdin)

    def _hear(self, dealer: _Dealer, came: dict[object, int]) -> None:
        if dealer.monitor in came and is_lost(dealer.monitor.recv_multipart()):
            dealer.is_lost = True
        if dealer.socket in came or dealer.is_lost:
            self._receive(dealer)
        if self._machine.is_greeting and time.monotonic() >= self._deadline:
            self._disconnect()
            self._unreachable(no_welcome(dealer.address, CONNECT_SECONDS))

    # --- standard input and output ------------------------------------------------------------------------------------

    def _read(self, stdin: int) -> None:
        try:
            data = os.read(stdin, READ_BYTES)
        except BlockingIOError:
            return  # a terminal is one open file for input and output, and does not block now
        except OSError:
            data = b""  # a terminal that has gone
        if data:
            self._machine.feed(data)
        else:
            self._stdin = None
            self._machine.end_input()

    def _write(self) -> None:
        while self._machine.waiting_bytes:
            try:
                count = os.write(self._stdout, self._machine.output())
            except BlockingIOError:
                return
            except ConnectionError:
                raise BrokenPipeError from None
            except OSError as error:
                raise OutputError(error) from error
            self._machine.written(count)

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Raises EnclaveError."""
        self._dealer = _Dealer(find_address(self._options, self._options.timeout))

    def _disconnect(self) -> None:
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None

    def _begin(self) -> None:
        try:
            if self._dealer is None:
                self._connect()
        except EnclaveError as error:
            self._unreachable(error)
            return
        self._deadline = time.monotonic() + CONNECT_SECONDS
        self._machine.begin()

    def _unreachable(self, error: EnclaveError) -> None:
        self._attempts = 0
        self._failed = not self._machine.was_welcomed
        if not self._options.start and speaks_of_starting(error.code, error.hint):
            error.hint = NOT_STARTED_HINT
        self._machine.unreachable(error)

    def _send(self) -> None:
        while self._dealer is not None and self._machine.outbox:
            # There is no mark at which it would wait; to a daemon that has gone, nothing arrives.
            with suppress(zmq.Again):
                self._dealer.socket.send_multipart(self._machine.outbox.popleft(), zmq.NOBLOCK)

    def _receive(self, dealer: _Dealer) -> None:
        for _ in range(MESSAGES_A_TURN):
            if not self._machine.wants_frames:
                return
            try:
                frames = dealer.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                # What the daemon said last comes before the news that it is gone.
                if dealer.is_lost:
                    self._lost(dealer)
                return
            self._machine.receive(frames)
            if not self._machine.has_session:
                self._disconnect()
                return
            if not self._machine.is_greeting:
                self._attempts = 0

    def _lost(self, dealer: _Dealer) -> None:
        self._disconnect()
        if not self._machine.is_greeting:
            self._machine.lost()
            return
        self._attempts += 1
        if self._attempts < CONNECT_ATTEMPTS:
            self._machine.unsay()
        else:
            self._unreachable(no_answer(dealer.address))
