"""A client of a few lines on the wire itself, for tests that look at messages or misbehave; and waiting for events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

import enclave
from enclave.protocol import Hello, Message, Ping, Pong, Request, Role, Session, Welcome, write_body
from enclave.protocol.bodies import EventChunk, GenerateParams
from enclave.protocol.messages import read_raw

SECONDS = 60.0
"""Only ends a test that has failed already."""


class WireClient:
    """A DEALER and a session; nothing is read, granted or answered but what the test asks for."""

    def __init__(self, endpoint: str, *, receive_mark: int = 0, answers_pings: bool = True) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 2**31 - 1)
        self.socket.setsockopt(zmq.RCVHWM, receive_mark)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        self.socket.setsockopt(zmq.SNDTIMEO, int(SECONDS * 1000))
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        self.answers_pings = answers_pings
        self.session = Session(Role.CLIENT)
        self.socket.connect(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
        self._context.term()

    def hello(self, name: str = "wire") -> Welcome:
        self.send(Hello(version=1, client=name))
        welcome = self.next()
        assert isinstance(welcome, Welcome)
        return welcome

    def hello_again(self, name: str = "wire") -> Welcome:
        """Begins a session after another; what still comes of that is dropped."""
        self.session = Session(Role.CLIENT)
        self.send(Hello(version=1, client=name))
        while read_raw(frames := self.socket.recv_multipart()).type != Welcome.TYPE:
            continue
        (welcome,) = self.session.receive(frames)
        assert isinstance(welcome, Welcome)
        return welcome

    def send(self, message: Message) -> None:
        self.socket.send_multipart(self.session.send(message))

    def send_frames(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def generate(self, model: str, prompt: str = "x", **header: Any) -> int:
        request_id = self.session.next_id()
        body = write_body(GenerateParams(prompt=prompt, temperature=0.0))
        self.send(Request(id=request_id, method="generate", model=model, body=body, **header))
        return request_id

    def next(self) -> Message:
        """The next message; pings are answered and left out."""
        while True:
            for message in self.session.receive(self.socket.recv_multipart()):
                if isinstance(message, Ping) and self.answers_pings:
                    self.send(Pong(data=message.data))
                    continue
                return message

    def hung_up_on(self) -> None:
        """Waits for the connection's end."""
        self._monitor.recv_multipart()

    def is_kept(self, seconds: float) -> bool:
        """Whether the connection holds for so long, while nothing is read."""
        return self._monitor.poll(int(seconds * 1000)) == 0


def wait_for_event(events: Iterator[EventChunk], found: Callable[[EventChunk], bool]) -> EventChunk:
    """The first event that is so."""
    for event in events:
        if found(event):
            return event
    raise AssertionError("the events ended")


def instances_in(event: EventChunk) -> list[dict[str, Any]]:
    """What an event says of instances, as they are now."""
    data: dict[str, Any] = event.data or {}
    if event.name == "snapshot":
        return list(data.values())
    return [] if event.name in ("removed", "behind") else [data]


def wait_for_instance(client: enclave.Client, found: Callable[[dict[str, Any]], bool]) -> None:
    """Waits until some instance is so, by what the daemon tells of each change."""
    with client.events("instances") as events:
        wait_for_event(iter(events), lambda event: any(found(instance) for instance in instances_in(event)))


def anonymous_bytes(pid: int) -> int:
    """Of a process's memory, what is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
