"""Both sides of a session played against each other, without a socket."""

from __future__ import annotations

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


class SessionPair:
    """A client's and a daemon's session; what one sends the other receives, and they must agree afterwards."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.client = Session(Role.CLIENT)
        self.daemon = Session(Role.DAEMON, limits)

    def opened(self) -> SessionPair:
        """With hello and welcome said."""
        self.up(Hello(version=PROTOCOL_VERSION, client="test"))
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
        received = [got for message in messages for got in receiver.receive(sender.send(message))]
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
    return SessionPair(Limits(body_bytes=1000, attachment_bytes=100, attachments=2, open_requests=3))


@pytest.fixture
def pair(fresh: SessionPair) -> SessionPair:
    """Hello and welcome said."""
    return fresh.opened()
