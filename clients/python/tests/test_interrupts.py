"""Ctrl-C at any line of the client: whatever it leaves unfinished, the client and its threads go on."""

from __future__ import annotations

import linecache
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import zmq

import enclave
from enclave import client as client_module
from enclave.client import Client
from enclave.protocol import Request

if TYPE_CHECKING:
    from clients.python.tests.conftest import ScriptedDaemon

SECONDS = 20.0
STEP = 7
"""Not every line, to be done in a second or two."""
HOME = str(Path(client_module.__file__).parent)
FILES = frozenset(f"{HOME}{os.sep}{name}.py" for name in ("client", "connection", "conversation", "dealer", "stream"))


def is_finalizer(frame: FrameType) -> bool:
    """Whether the garbage collector called this: what is raised there goes nowhere."""
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_name == "__del__" or at.f_code.co_filename == weakref.__file__:
            return True
        at = at.f_back
    return False


class InterruptAt:
    """Raises KeyboardInterrupt in this thread when it comes to the client's line of that number, counted as it goes."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> InterruptAt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in FILES or is_finalizer(frame):
            return None
        # On its way out of a `with`, a tracer comes before the exit, where no signal can.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with"
        ):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def test_ctrl_c_at_any_line_leaves_a_client_that_works(daemon: ScriptedDaemon) -> None:
    seen = 0
    with ThreadPoolExecutor(1) as other:
        for line in range(1, 10_000, STEP):
            seen = line
            client = Client(start=False)
            with InterruptAt(line) as interrupt:
                try:
                    client.generate("tiny", "x").result()
                    client.close()
                except KeyboardInterrupt:
                    pass
            assert other.submit(client.info).result(SECONDS).version == "1", line
            client.close()
            if interrupt.left > 0:
                break
    assert seen > 200


def test_ctrl_c_in_one_thread_leaves_the_others_with_an_answer_or_a_lost_connection(daemon: ScriptedDaemon) -> None:
    client = Client(start=False)
    over = threading.Event()
    foreign: list[BaseException] = []

    def ask() -> None:
        while not over.is_set():
            try:
                client.generate("tiny", "x").result()
            except enclave.ConnectionLostError:
                pass
            except BaseException as error:  # noqa: BLE001 - what must not come
                foreign.append(error)

    others = [threading.Thread(target=ask) for _ in range(2)]
    for each in others:
        each.start()
    try:
        for line in range(1, 2000, STEP):
            with suppress(KeyboardInterrupt, enclave.ConnectionLostError), InterruptAt(line % 331):
                client.generate("tiny", "x").result()
    finally:
        over.set()
        for each in others:
            each.join(SECONDS)
    assert not any(each.is_alive() for each in others)
    assert foreign == []
    client.close()


def test_ctrl_c_at_any_line_of_connecting_again_leaves_the_others_with_an_end(
    make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    seen = 0
    with ThreadPoolExecutor(1) as other:
        for line in range(1, 10_000, STEP):
            seen = line
            first = make_daemon()
            first.answers["generate"] = lambda exchange: None
            announce(first.address)
            client = Client(start=False)
            mine, its = client.generate("tiny", "x"), client.generate("tiny", "y")
            first.wait_seen(Request, 2)
            second = make_daemon()
            announce(second.address)
            first.stop()
            waiting = other.submit(its.result)
            with InterruptAt(line) as interrupt, suppress(KeyboardInterrupt, enclave.EnclaveError):
                mine.result()
            assert isinstance(waiting.exception(SECONDS), enclave.EnclaveError | None), line
            client.close()
            second.stop()
            if interrupt.left > 0:
                break
    assert seen > 20


def test_ctrl_c_while_the_sockets_are_made_closes_those_that_are(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def interrupted(self: object, *_: object) -> Any:
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Client(start=False).info()
    (socket,) = made
    assert socket.closed
    assert socket.context.closed
