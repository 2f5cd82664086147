"""Whom a connection is hung up on: the one whose message it was, and nobody else."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, cast

import pytest
import zmq

from enclaved.daemon.broker.peer import peer_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system vouches for processes on Linux")


class Frame:
    """What libzmq says of a frame that came over this descriptor from this process."""

    def __init__(self, descriptor: int, pid: int) -> None:
        self._known: dict[object, object] = {"Peer-Address": f"localhost:{os.getuid()}:0:{pid}", zmq.SRCFD: descriptor}

    def get(self, option: object) -> Any:
        return self._known[option]


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_descriptor_that_has_become_anothers_is_left_alone(is_reused: bool) -> None:
    ours, theirs = socket.socketpair()  # both of this process
    with ours, theirs:
        peer = peer_of(cast("zmq.Frame", Frame(ours.fileno(), os.getppid() if is_reused else os.getpid())))
        assert peer.hang_up() is not is_reused
        if is_reused:
            ours.send(b"x")
            assert theirs.recv(1) == b"x"
        else:
            assert theirs.recv(1) == b""
