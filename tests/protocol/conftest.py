"""Both sides of a session played against each other, without a socket."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest

from enclave.protocol import (
    PROTOCOL_VERSION,
    Hello,
    Limits,
    Message,
    RemoteProtocolError,
    Role,
    Session,
    Welcome,
)

TOKEN = bytes(range(16))


def feed_in_pieces(receiver: Session, frames: list[bytes]) -> None:
    """Frames cut off after every byte, and with bytes and frames behind them, are refused by whoever would take them
    whole; only a body is opaque and may end anywhere. Copies of the receiver take them, so that it is left alone."""
    header, *rest = frames
    broken = [[header[:length], *rest] for length in range(len(header))]
    broken += [[header + behind, *rest] for behind in (b"\xc1", b"\0", header)]
    broken += [frames[:count] for count in range(len(frames))]
    broken.append([*frames, b"behind"])
    for pieces in broken:
        with pytest.raises(RemoteProtocolError):
            copy.deepcopy(receiver).receive(pieces)


class SessionPair:
    """A client's and a daemon's session; what one sends the other receives, and they must agree afterwards."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.client = Session(Role.CLIENT)
        self.daemon = Session(Role.DAEMON, limits)

    def opened(self) -> SessionPair:
        """With hello and welcome said."""
        self.up(Hello(version=PROTOCOL_VERSION, version_min=1, client="test"))
        self.down(Welcome(version=PROTOCOL_VERSION, token=TOKEN, server="1", pid=1, limits=self.limits))
        return self

    def up(self, *messages: Message) -> list[Message]:
        """Client to daemon."""
        return self._move(self.client, self.daemon, messages)

    def down(self, *messages: Message) -> list[Message]:
        """Daemon to client."""
        return self._move(self.daemon, self.client, messages)

    def refused(self, frames: list[bytes]) -> RemoteProtocolError:
        """What the daemon raises for frames that no client of ours would send."""
        with pytest.raises(RemoteProtocolError) as caught:
            self.daemon.receive(frames)
        return caught.value

    def _move(self, sender: Session, receiver: Session, messages: Iterable[Message]) -> list[Message]:
        received: list[Message] = []
        for message in messages:
            frames = sender.send(message)
            feed_in_pieces(receiver, frames)
            received += receiver.receive(frames)
        assert self.client.state is self.daemon.state
        assert self.client.open_ids == self.daemon.open_ids
        assert self.client.token == self.daemon.token
        for request_id in self.client.open_ids:
            assert self.client.credit(request_id) == self.daemon.credit(request_id)
            assert self.client.next_seq(request_id) == self.daemon.next_seq(request_id)
        return received


@pytest.fixture
def fresh() -> SessionPair:
    """Nothing said yet."""
    return SessionPair(Limits(body_bytes=1000, attachment_bytes=100, attachments=2, open_requests=3, queued_bytes=1005))


@pytest.fixture
def pair(fresh: SessionPair) -> SessionPair:
    """Hello and welcome said."""
    return fresh.opened()
