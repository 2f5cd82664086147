"""What happens to lost calls while the clients connect again: closing, cancelling, deadlines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, cast

import pytest

import enclave
from enclave import AsyncClient, AsyncStream, Client, Stream
from enclave import client as client_module
from enclave.conversation import Conversation
from enclave.protocol import Hello, Pong, Request

if TYPE_CHECKING:
    from clients.python.tests.conftest import Exchange, ScriptedDaemon

CONNECT_SECONDS = 15.0
"""The attempt lasts as long as this, unless it is given up."""
SECONDS = 10.0
"""Enough for what need not wait for the attempt."""


def say_nothing(exchange: Exchange) -> None:
    pass


@pytest.fixture
def mute(daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon]) -> ScriptedDaemon:
    """The daemon that comes after the first one, which never answers: it does not welcome anybody."""
    daemon.answers["generate"] = say_nothing
    made = make_daemon()
    made.greeting = lambda peer: Pong()
    return made


@pytest.fixture
def lose(daemon: ScriptedDaemon, mute: ScriptedDaemon, announce: Callable[[str], None]) -> Callable[[int], None]:
    """Has the first daemon vanish after so many requests, and waits until the client says hello to the next one."""

    def vanish(requests: int) -> None:
        daemon.wait_seen(Request, requests)
        announce(mute.address)
        daemon.stop()
        mute.wait_seen(Hello)

    return vanish


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[Client]:
    with Client(start=False, timeout=CONNECT_SECONDS) as made:
        yield made


def ask(client: Client, count: int, **options: Any) -> list[Stream[Any, Any]]:
    return [client.generate("tiny", "x", **options) for _ in range(count)]


# --- the blocking client ---


def test_closing_ends_at_once_what_waits_for_the_next_daemon_and_leaves_no_session(
    client: Client, lose: Callable[[int], None], pool: ThreadPoolExecutor
) -> None:
    waiting = [pool.submit(stream.result) for stream in ask(client, 3)]
    lose(3)
    client.close()
    for each in waiting:
        with pytest.raises(enclave.CancelledError):
            each.result(SECONDS)
    assert repr(client).endswith("not connected>")


def test_what_is_connected_after_closing_is_closed_again(
    client: Client,
    daemon: ScriptedDaemon,
    make_daemon: Callable[..., ScriptedDaemon],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon.answers["generate"] = say_nothing
    second = make_daemon()
    looking, found = threading.Event(), threading.Event()

    def find_slowly(*_: object) -> str:
        looking.set()
        assert found.wait(SECONDS)
        return second.address

    monkeypatch.setattr(client_module, "find_address", find_slowly)
    waiting = [pool.submit(stream.result) for stream in ask(client, 3)]
    daemon.wait_seen(Request, 3)
    daemon.stop()
    assert looking.wait(SECONDS)
    client.close()
    ended = as_completed(waiting, SECONDS)
    errors = [next(ended).exception(), next(ended).exception()]
    found.set()  # for the third, which is the one that looks
    errors.append(next(ended).exception())
    assert [type(error) for error in errors] == [enclave.CancelledError] * 3
    assert repr(client).endswith("not connected>")
    assert not second.seen(Request)


def test_closing_in_the_middle_of_asking_again_ends_what_is_asked(
    client: Client,
    daemon: ScriptedDaemon,
    announce: Callable[[str], None],
    make_daemon: Callable[..., ScriptedDaemon],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon.answers["generate"] = say_nothing
    adopt = Conversation.adopt

    def adopt_late(self: Conversation, *arguments: Any) -> Any:
        client.close()
        return adopt(self, *arguments)

    monkeypatch.setattr(Conversation, "adopt", adopt_late)
    (stream,) = ask(client, 1)
    daemon.wait_seen(Request)
    announce(make_daemon().address)
    daemon.stop()
    with pytest.raises(enclave.CancelledError):
        stream.result()
    assert repr(client).endswith("not connected>")


def test_nobody_connects_for_what_has_ended(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = say_nothing
    (stream,) = ask(client, 1)
    client.close()
    cast("Any", client)._again(cast("Any", stream)._answer)
    assert len(daemon.seen(Hello)) == 1


def test_cancelling_ends_at_once_what_waits_for_the_next_daemon(
    client: Client, lose: Callable[[int], None], pool: ThreadPoolExecutor
) -> None:
    streams = ask(client, 3)
    waiting = [pool.submit(stream.result) for stream in streams]
    lose(3)
    for stream, each in zip(streams, waiting, strict=True):
        stream.cancel()
        with pytest.raises(enclave.CancelledError):
            each.result(SECONDS)


def test_who_waits_goes_on_connecting_when_the_one_that_does_is_cancelled(
    client: Client, lose: Callable[[int], None], mute: ScriptedDaemon, pool: ThreadPoolExecutor
) -> None:
    first, second = ask(client, 2)
    connects = pool.submit(first.result)
    lose(2)
    waits = pool.submit(second.result)
    mute.greeting = cast("Any", mute)._welcome  # from the next one on
    first.cancel()
    with pytest.raises(enclave.CancelledError):
        connects.result(SECONDS)
    assert waits.result(SECONDS).text == "Hello!"


def test_a_deadline_runs_out_while_the_client_connects_again(
    client: Client, lose: Callable[[int], None], pool: ThreadPoolExecutor
) -> None:
    waiting = [pool.submit(stream.result) for stream in ask(client, 3, deadline=1.0)]
    lose(3)
    for each in waiting:
        with pytest.raises(enclave.DeadlineError):
            each.result(SECONDS)


# --- the asynchronous client ---


def ask_async(client: AsyncClient, count: int, **options: Any) -> list[AsyncStream[Any, Any]]:
    return [client.generate("tiny", "x", **options) for _ in range(count)]


async def ended(waiting: list[asyncio.Task[Any]]) -> list[type[BaseException]]:
    """What tasks end with, before the attempt to connect does."""
    async with asyncio.timeout(SECONDS):
        return [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)]


@pytest.mark.asyncio
async def test_closing_the_asynchronous_client_ends_what_waits_and_cancels_no_task(
    daemon: ScriptedDaemon, lose: Callable[[int], None]
) -> None:
    async with AsyncClient(start=False, timeout=CONNECT_SECONDS) as client:
        waiting = [asyncio.ensure_future(stream.result()) for stream in ask_async(client, 2)]
        await asyncio.to_thread(lose, 2)
        waiting.append(asyncio.ensure_future(client.info()))
        asyncio.get_running_loop().call_soon(lambda: waiting.append(asyncio.ensure_future(client.close())))
        assert await ended(waiting) == [enclave.CancelledError] * 3
        await asyncio.gather(*waiting[3:])
        assert repr(client).endswith("not connected>")


@pytest.mark.asyncio
async def test_closing_while_the_asynchronous_client_connects_first_cancels_no_task(
    daemon: ScriptedDaemon,
) -> None:
    daemon.greeting = lambda peer: Pong()
    client = AsyncClient(start=False, timeout=CONNECT_SECONDS)
    entering = asyncio.ensure_future(client.__aenter__())
    await asyncio.to_thread(daemon.wait_seen, Hello)
    await client.close()
    assert await ended([entering]) == [enclave.CancelledError]


@pytest.mark.asyncio
async def test_cancelling_ends_at_once_what_waits_for_the_asynchronous_client(
    daemon: ScriptedDaemon, lose: Callable[[int], None]
) -> None:
    async with AsyncClient(start=False, timeout=CONNECT_SECONDS) as client:
        streams = ask_async(client, 2)
        waiting = [asyncio.ensure_future(stream.result()) for stream in streams]
        await asyncio.to_thread(lose, 2)
        streams[0].cancel()
        assert await ended(waiting[:1]) == [enclave.CancelledError]
        assert not waiting[1].done()
        streams[1].cancel()
        assert await ended(waiting[1:]) == [enclave.CancelledError]


@pytest.mark.asyncio
async def test_a_deadline_runs_out_while_the_asynchronous_client_connects_again(
    daemon: ScriptedDaemon, lose: Callable[[int], None]
) -> None:
    async with AsyncClient(start=False, timeout=CONNECT_SECONDS) as client:
        waiting = [asyncio.ensure_future(stream.result()) for stream in ask_async(client, 2, deadline=1.0)]
        await asyncio.to_thread(lose, 2)
        assert await ended(waiting) == [enclave.DeadlineError] * 2
