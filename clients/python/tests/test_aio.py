"""The asynchronous client against the same scripted daemon, and its likeness to the blocking one."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import enclave
from enclave import AsyncClient, AsyncStream, Client, Stream
from enclave.protocol import (
    METHODS,
    Cancel,
    Hello,
    Limits,
    Progress,
    Request,
    Result,
    failure,
    read_params,
    write_body,
)
from enclave.protocol.bodies import InstanceInfo, LoadResult

if TYPE_CHECKING:
    from clients.python.tests.conftest import Exchange, ScriptedDaemon

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def client(daemon: ScriptedDaemon) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(name="test", start=False) as made:
        yield made


def hold(exchange: Exchange) -> None:
    exchange.chunks("first")


async def seen(daemon: ScriptedDaemon, kind: Any) -> None:
    await asyncio.to_thread(daemon.wait_seen, kind)


async def test_a_stream_gives_chunks_in_order_and_then_the_whole(client: AsyncClient) -> None:
    stream = client.generate("tiny", "Once", temperature=0)
    assert [chunk.text async for chunk in stream] == ["Hel", "lo", "!"]
    result = await stream.result()
    assert (result.text, result.finish_reason, result.receipt.device) == ("Hello!", "stop", "cpu")


async def test_awaiting_a_stream_gives_its_result(client: AsyncClient) -> None:
    assert (await client.generate("tiny", "Once")).text == "Hello!"


async def test_a_request_is_sent_at_once(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    client.generate("tiny", "x")
    daemon.wait_seen(Request)  # blocks the loop: nothing but the call itself can have sent it


async def test_the_first_calls_share_one_connection(daemon: ScriptedDaemon) -> None:
    client = AsyncClient(start=False)
    streams = [client.generate("tiny", str(number)) for number in range(5)]
    assert [(await stream.result()).text for stream in streams] == ["Hello!"] * 5
    assert len(daemon.seen(Hello)) == 1
    await client.close()


async def test_a_slow_reader_is_owed_joined_chunks_and_loses_none(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    def many(exchange: Exchange) -> None:
        exchange.chunks(*(f"{number} " for number in range(1000)))
        exchange.finish()

    daemon.answers["generate"] = many
    texts = [chunk.text async for chunk in client.generate("tiny", "x", credit=2)]
    assert texts == [f"{number} " for number in range(1000)]


async def test_leaving_a_loop_early_cancels_the_request(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    async for chunk in stream:
        assert chunk.text == "first"
        break
    await seen(daemon, Cancel)
    assert (await stream.result()).finish_reason == "cancelled"


async def test_leaving_a_with_block_cancels_the_request(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    async with client.generate("tiny", "x"):
        pass
    await seen(daemon, Cancel)


async def test_cancelling_the_waiting_task_cancels_the_request(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    waiting = asyncio.ensure_future(client.generate("tiny", "x").result())
    await seen(daemon, Request)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await seen(daemon, Cancel)
    assert (await client.info()).version == "1"


async def test_streams_of_one_client_interleave(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = lambda exchange: exchange.chunks("a")
    first, second = aiter(client.generate("tiny", "1")), aiter(client.generate("tiny", "2"))
    assert (await anext(first)).text == "a"
    assert (await anext(second)).text == "a"
    one, two = daemon.exchanges.values()
    daemon.do(lambda: two.chunks("b"))
    assert (await anext(second)).text == "b"
    daemon.do(lambda: one.chunks("c"))
    assert (await anext(first)).text == "c"


async def test_an_error_of_the_daemon_is_raised_by_iteration_and_by_result(
    client: AsyncClient, daemon: ScriptedDaemon
) -> None:
    daemon.answers["generate"] = lambda exchange: exchange.send(failure(exchange.request.id, "busy"))
    with pytest.raises(enclave.BusyError):
        await client.generate("tiny", "x")
    with pytest.raises(enclave.BusyError):
        async for _ in client.generate("tiny", "x"):
            pass
    with pytest.raises(enclave.UnsupportedError):
        await client.embed("minilm", "a")


async def test_load_can_be_awaited_or_iterated(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    instance = InstanceInfo(id="i1", model="tiny", state="ready", wanted="ready", backend="fake")

    def load(exchange: Exchange) -> None:
        exchange.send(Progress(id=exchange.request.id, stage=enclave.Stage.LOADING, fraction=0.4))
        exchange.send(Result(id=exchange.request.id, body=write_body(LoadResult(instance=instance))))

    daemon.answers["instances.load"] = load
    assert (await client.load("tiny")).instance == instance
    assert [news.fraction async for news in client.load("tiny")] == [0.4]


async def test_a_vanished_daemon_ends_open_requests(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    await seen(daemon, Request)
    await asyncio.to_thread(daemon.stop)
    with pytest.raises(enclave.ConnectionLostError):
        await stream.result()
    with pytest.raises(enclave.DaemonUnavailableError):
        await client.info()


async def test_what_the_daemon_said_before_it_vanished_is_not_lost(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    stream = client.generate("tiny", "x")
    daemon.wait_seen(Request)
    daemon.stop(linger_ms=10_000)  # the loop stands still meanwhile
    assert (await stream.result()).text == "Hello!"


async def test_too_large_is_found_before_sending(make_daemon: Callable[..., ScriptedDaemon], where: object) -> None:
    small = make_daemon(Limits(body_bytes=100))
    async with AsyncClient(endpoint=small.address) as client:
        stream = client.generate("tiny", "x" * 200)
        with pytest.raises(enclave.TooLargeError):
            await stream
        assert small.seen(Request) == []


async def test_connecting_errors_reach_whoever_waits(where: object) -> None:
    client = AsyncClient(start=False)
    stream = client.generate("tiny", "x")
    with pytest.raises(enclave.DaemonUnavailableError):
        await stream.result()
    with pytest.raises(enclave.DaemonUnavailableError):
        async for _ in client.generate("tiny", "x"):
            pass
    client.generate("tiny", "x")  # nobody waits: no complaint about a lost exception either
    await client.close()


async def test_closing_ends_open_streams_as_cancelled(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    waiting = asyncio.ensure_future(stream.result())
    await seen(daemon, Request)
    await client.close()
    with pytest.raises(enclave.CancelledError):
        await waiting


async def test_many_tasks_share_one_client(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    async def ask(number: int) -> str:
        return "".join([chunk.text async for chunk in client.generate("tiny", str(number))])

    assert await asyncio.gather(*(ask(number) for number in range(200))) == ["Hello!"] * 200
    assert len(daemon.seen(Hello)) == 1


async def test_tasks_may_share_a_stream_and_each_piece_goes_to_one_of_them(
    client: AsyncClient, daemon: ScriptedDaemon
) -> None:
    def many(exchange: Exchange) -> None:
        exchange.chunks(*(f"{number} " for number in range(500)))
        exchange.finish()

    daemon.answers["generate"] = many
    stream = client.generate("tiny", "x", credit=8)

    async def read() -> list[str]:
        return [chunk.text async for chunk in stream]

    pieces = [piece for part in await asyncio.gather(read(), read(), read()) for piece in part]
    assert sorted(pieces, key=int) == [f"{number} " for number in range(500)]


async def test_what_had_not_begun_is_asked_again_and_what_had_says_so(
    client: AsyncClient,
    daemon: ScriptedDaemon,
    make_daemon: Callable[..., ScriptedDaemon],
    announce: Callable[[str], None],
) -> None:
    daemon.answers["generate"] = hold
    begun = aiter(client.generate("tiny", "x"))
    assert (await anext(begun)).text == "first"
    daemon.answers["generate"] = lambda exchange: None
    fresh = client.generate("tiny", "y")
    await asyncio.to_thread(daemon.wait_seen, Request, 2)
    second = make_daemon()
    announce(second.address)
    await asyncio.to_thread(daemon.stop)
    with pytest.raises(enclave.ConnectionLostError) as caught:
        await anext(begun)
    assert caught.value.request is not None
    assert caught.value.request.had_begun
    both = await asyncio.gather(fresh.result(), fresh.result())
    assert [result.text for result in both] == ["Hello!"] * 2
    assert len(second.seen(Request)) == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_a_client_may_be_used_in_one_loop_after_another(daemon: ScriptedDaemon) -> None:
    def in_loops_of_its_own() -> list[str]:
        client = AsyncClient(start=False)

        async def ask() -> str:
            return (await client.info()).version

        versions = [asyncio.run(ask()), asyncio.run(ask())]
        asyncio.run(client.close())
        return versions

    assert await asyncio.to_thread(in_loops_of_its_own) == ["1", "1"]


async def test_the_repr_tells_where_it_is_and_what_is_open(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    stream = client.generate("tiny", "secret")
    assert repr(client) == f"<AsyncClient 'test' at {daemon.address}, 1 open>"
    assert repr(stream) == "<AsyncStream generate 1, open>"
    await client.close()
    assert repr(client) == "<AsyncClient 'test', not connected>"


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(value)
        for name, value in inspect.getmembers(kind, callable)
        if not name.startswith("_") or name == "__init__"
    }


@pytest.mark.parametrize(("blocking", "twin"), [(Client, AsyncClient), (Stream, AsyncStream)])
async def test_both_clients_have_the_same_names_and_parameters(blocking: type, twin: type) -> None:
    ours, theirs = public(blocking), public(twin)
    assert set(theirs) == set(ours)
    for name, signature in ours.items():
        if name == "__init__" and blocking is Stream:
            continue
        assert list(signature.parameters.values()) == list(theirs[name].parameters.values()), name
        expected = str(signature.return_annotation).replace("Stream[", "AsyncStream[")
        assert theirs[name].return_annotation == expected, name


NAMED_OTHERWISE = {
    "daemon.info": "info",
    "daemon.health": "health",
    "daemon.metrics": "metrics",
    "daemon.shutdown": "shutdown",
    "models.list": "models",
    "instances.list": "instances",
    "folders.list": "folders",
    "folders.add": "add_folder",
    "folders.remove": "remove_folder",
    "plugins.list": "plugins",
    "downloads.list": "downloads",
    "downloads.cancel": "cancel_download",
    "hardware.show": "hardware",
    "privacy.report": "privacy",
    "scheduler.why": "why",
    "events.subscribe": "events",
    "config.get": "config",
    "config.set": "set_config",
}


async def test_every_method_of_the_protocol_is_a_method_of_the_clients() -> None:
    named = {NAMED_OTHERWISE.get(name, name.rpartition(".")[2]) for name in METHODS}
    assert named == set(public(Client)) - {"close", "__init__"}


async def test_a_method_whose_other_side_is_not_built_says_so(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    for asked in (client.search("x"), client.rerank("m", "q", ["d"]), client.hardware(), client.config()):
        with pytest.raises(enclave.UnsupportedError):
            await asked


async def test_what_is_wrong_with_a_call_comes_to_who_waits(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    streams = [client.generate("tiny", "x") for _ in range(257)]
    wrong: Any = {"priority": "urgent"}
    streams.append(client.generate("tiny", "x", **wrong))
    assert [stream.done for stream in streams[256:]] == [True, True]
    assert repr(streams[256]) == "<AsyncStream failed: busy>"
    busy, bad = await asyncio.gather(*streams[256:], return_exceptions=True)
    assert isinstance(busy, enclave.BusyError)
    assert isinstance(bad, enclave.BadRequestError)
    assert busy.__cause__ is None
    with pytest.raises(enclave.BusyError):
        async for _ in streams[256]:
            pass


async def test_a_stream_that_nobody_holds_any_more_is_cancelled(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    client.generate("tiny", "x")
    await asyncio.to_thread(daemon.wait_seen, Cancel)
    in_a_cycle: list[Any] = [client.generate("tiny", "x")]
    in_a_cycle.append(in_a_cycle)
    del in_a_cycle
    await asyncio.to_thread(gc.collect)
    await asyncio.to_thread(daemon.wait_seen, Cancel, 2)


async def test_a_stream_that_nobody_holds_is_cancelled_also_when_it_was_dropped_before_it_was_sent(
    daemon: ScriptedDaemon,
) -> None:
    daemon.answers["generate"] = hold
    client = AsyncClient(start=False)
    client.generate("tiny", "x")
    await asyncio.to_thread(daemon.wait_seen, Cancel)
    await client.close()


async def test_a_stream_may_be_dropped_after_its_loop_was_closed(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold

    def in_a_loop_of_its_own() -> None:
        client = AsyncClient(start=False)

        async def ask() -> AsyncStream[Any, Any]:
            await client.info()
            return client.generate("tiny", "x")

        stream = asyncio.run(ask())
        del stream
        asyncio.run(client.close())

    await asyncio.to_thread(in_a_loop_of_its_own)


async def test_text_has_what_came(client: AsyncClient, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    assert stream.text == ""
    async for _ in stream:
        break
    assert stream.text == "first"


async def test_cancelling_before_the_connection_is_there_ends_who_waits_as_cancelled(daemon: ScriptedDaemon) -> None:
    client = AsyncClient(start=False)
    stream = client.generate("tiny", "x")
    waiting = asyncio.ensure_future(stream.result())
    asyncio.get_running_loop().call_soon(stream.cancel)  # behind the task's first step: it waits then
    with pytest.raises(enclave.CancelledError):
        await waiting
    await client.close()


async def test_what_is_asked_after_a_loss_comes_after_what_was_lost(
    client: AsyncClient,
    daemon: ScriptedDaemon,
    make_daemon: Callable[..., ScriptedDaemon],
    announce: Callable[[str], None],
) -> None:
    daemon.answers["generate"] = lambda exchange: None
    oldest, old = (client.generate("tiny", text, supersedes="document") for text in ("oldest", "old"))
    await asyncio.to_thread(daemon.wait_seen, Request, 2)
    second = make_daemon()
    announce(second.address)
    await asyncio.to_thread(daemon.stop)
    with pytest.raises(enclave.CancelledError):
        await oldest
    new = client.generate("tiny", "new", supersedes="document")
    assert [(await stream).text for stream in (new, old)] == ["Hello!"] * 2
    requests: list[Any] = second.seen(Request)
    assert [read_params(request).prompt for request in requests] == ["old", "new"]
