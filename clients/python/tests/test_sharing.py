"""One client in many threads, over restarts of the daemon and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import enclave
from enclave.client import Client
from enclave.protocol import Cancel, Hello, Request

if TYPE_CHECKING:
    from clients.python.tests.conftest import Exchange, ScriptedDaemon

SECONDS = 30.0


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual, so that they meet in the middle of everything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


def hold(exchange: Exchange) -> None:
    exchange.chunks("first")


def say_nothing(exchange: Exchange) -> None:
    pass


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    """A program of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )


def echo(exchange: Exchange) -> None:
    """The prompt's own text, a letter a chunk, so that an answer tells whose it is."""
    from enclave.protocol import read_params

    exchange.chunks(*read_params(exchange.request).prompt)
    exchange.finish()


def test_many_threads_share_one_client_and_each_gets_its_own_answer(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = echo
    with Client(start=False) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> str:
            if number % 2:
                return "".join(chunk.text for chunk in client.generate("tiny", f"prompt {number} " * 20))
            return client.generate("tiny", f"prompt {number} " * 20).result().text

        texts = list(pool.map(ask, range(300)))
    assert texts == [f"prompt {number} " * 20 for number in range(300)]
    assert len(daemon.seen(Hello)) == 1


def test_a_thread_that_waits_does_not_keep_others_from_asking(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    with Client(start=False) as client:
        stream = client.generate("tiny", "x")
        iterator = iter(stream)
        assert next(iterator).text == "first"
        waiting = threading.Thread(target=lambda: list(iterator))
        waiting.start()
        for _ in range(300):
            assert client.info().version == "1"
        stream.cancel()
        waiting.join(SECONDS)
        assert not waiting.is_alive()


def test_threads_may_share_a_stream_and_each_piece_goes_to_one_of_them(daemon: ScriptedDaemon) -> None:
    def many(exchange: Exchange) -> None:
        exchange.chunks(*(f"{number} " for number in range(2000)))
        exchange.finish()

    daemon.answers["generate"] = many
    with Client(start=False) as client, ThreadPoolExecutor(4) as pool:
        stream = client.generate("tiny", "x", credit=8)
        got = [pool.submit(lambda: [chunk.text for chunk in stream]) for _ in range(4)]
        pieces = [piece for part in got for piece in part.result(SECONDS)]
    assert sorted(pieces, key=int) == [f"{number} " for number in range(2000)]


def test_the_thread_that_reads_may_leave_and_another_goes_on(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = say_nothing
    with Client(start=False) as client, ThreadPoolExecutor(8) as pool:
        streams = [client.generate("tiny", str(number)) for number in range(8)]
        results = [pool.submit(stream.result) for stream in streams]
        daemon.wait_seen(Request, 8)
        for exchange in list(daemon.exchanges.values()):

            def answer(exchange: Exchange = exchange) -> None:
                exchange.chunks("done")
                exchange.finish()

            daemon.do(answer)
        assert [result.result(SECONDS).text for result in results] == ["done"] * 8


def test_closing_from_another_thread_ends_who_waits(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = say_nothing
    client = Client(start=False)
    stream = client.generate("tiny", "x")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.result)
        daemon.wait_seen(Request)
        client.close()
        with pytest.raises(enclave.CancelledError):
            waiting.result(SECONDS)


def test_threads_that_connect_at_once_make_one_connection(daemon: ScriptedDaemon) -> None:
    client = Client(start=False)
    together = threading.Barrier(8)

    def ask(_: int) -> str:
        together.wait(SECONDS)
        return client.info().version

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["1"] * 8
    assert len(daemon.seen(Hello)) == 1
    client.close()


# --- a daemon that goes and comes back ---


def test_what_had_not_begun_is_asked_again_of_the_next_daemon(
    daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    daemon.answers["generate"] = say_nothing
    second = make_daemon()
    second.answers["generate"] = echo
    client = Client(start=False)
    streams = [client.generate("tiny", f"prompt {number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(stream.result) for stream in streams]
        daemon.wait_seen(Request, 4)
        announce(second.address)
        daemon.stop()
        assert [result.result(SECONDS).text for result in waiting] == [f"prompt {number}" for number in range(4)]
    assert len(second.seen(Hello)) == 1
    client.close()


def test_what_had_begun_says_so_and_the_rest_goes_on(
    daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    daemon.answers["generate"] = hold
    second = make_daemon()
    client = Client(start=False)
    begun = iter(client.generate("tiny", "x"))
    assert next(begun).text == "first"
    daemon.answers["generate"] = say_nothing
    fresh = client.generate("tiny", "y")
    daemon.wait_seen(Request, 2)
    announce(second.address)
    daemon.stop()
    with pytest.raises(enclave.ConnectionLostError) as caught:
        next(begun)
    assert caught.value.request is not None
    assert (caught.value.request.id, caught.value.request.had_begun) == (1, True)
    assert caught.value.lost == (caught.value.request,)
    assert fresh.result().text == "Hello!"
    requests: list[Any] = second.seen(Request)
    assert [request.method for request in requests] == ["generate"]
    client.close()


def test_the_loss_of_an_idle_connection_is_noticed_before_something_is_asked_that_may_not_be_asked_twice(
    daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    client = Client(start=False)
    assert client.info().endpoint == daemon.address
    daemon.stop()
    second = make_daemon()
    announce(second.address)
    with pytest.raises(enclave.UnsupportedError):  # it has no such method, but was asked
        client.unload("tiny")
    assert len(second.seen(Request)) == 1
    client.close()


def test_a_request_is_not_asked_again_when_its_daemon_dies_of_it_twice(
    daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    second, third = make_daemon(), make_daemon()
    for each in (daemon, second):
        each.answers["generate"] = say_nothing
    client = Client(start=False)
    stream = client.generate("tiny", "x")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.result)
        daemon.wait_seen(Request)
        announce(second.address)
        daemon.stop()
        second.wait_seen(Request)
        announce(third.address)
        second.stop()
        with pytest.raises(enclave.ConnectionLostError, match="could not be asked again"):
            waiting.result(SECONDS)
    assert third.seen(Request) == []
    client.close()


def test_leaving_early_after_the_daemon_was_lost_is_quiet(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = say_nothing
    client = Client(start=False)
    with client.generate("tiny", "x"):
        daemon.wait_seen(Request)
        daemon.stop()
    client.close()


# --- fork ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_after_a_fork_each_process_has_a_connection_of_its_own(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    code = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore")
        import enclave
        client = enclave.Client(name="forking", start=False)
        stream = client.generate("tiny", "x")
        iterator = iter(stream)
        assert next(iterator).text == "first"
        # A thread waits in the parent while it forks: its locks are held in the child, and it is not there.
        waiting = threading.Thread(target=lambda: list(iterator), daemon=True)
        waiting.start()
        client.info()
        child = os.fork()
        if child == 0:
            try:
                assert client.info().version == "1"
                try:
                    stream.result()
                except enclave.ConnectionLostError as error:
                    assert "forked" in str(error), error
                else:
                    raise AssertionError("the parent's stream was read")
                stream.cancel()
                client.close()
                del client, stream, iterator
                os._exit(0)
            except BaseException as error:
                print("child:", repr(error), file=sys.stderr)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert client.info().version == "1"
        stream.cancel()
        waiting.join(30)
        assert not waiting.is_alive()
        client.close()
    """
    done = run_alone(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(daemon.seen(Hello)) == 2
    daemon.wait_seen(Cancel)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_does_not_wait_for_a_lock_of_a_thread_that_it_lacks(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    done = run_alone("""
        import os, sys, threading, warnings
        warnings.simplefilter("ignore")
        import enclave
        from enclave.connection import Connection
        client = enclave.Client(name="forking", start=False)
        stream = client.generate("tiny", "x")
        held, over = threading.Event(), threading.Event()
        take = Connection.take

        def take_for_long(self, answer):
            with self._lock:
                held.set()
                over.wait()
                return take(self, answer)

        Connection.take = take_for_long
        waiting = threading.Thread(target=lambda: next(iter(stream)))
        waiting.start()
        held.wait()
        child = os.fork()
        if child == 0:
            Connection.take = take
            try:
                for use in (stream.result, lambda: next(iter(stream)), lambda: stream._connection.wait(stream._answer)):
                    try:
                        use()
                    except enclave.ConnectionLostError as error:
                        assert "forked" in str(error), error
                    else:
                        raise AssertionError("the parent's stream was read")
                assert client.info().version == "1"
                os._exit(0)
            except BaseException as error:
                print("child:", repr(error), file=sys.stderr)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        over.set()
        waiting.join()
        client.close()
    """)
    assert (done.returncode, done.stderr) == (0, "")


# --- what is dropped without a word ---


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_a_client_that_the_garbage_collector_finds_with_its_sockets_does_not_hang_it(
    daemon: ScriptedDaemon, kind: str
) -> None:
    done = run_alone(f"""
        import asyncio, gc
        import enclave
        gc.disable()

        async def use(client):
            told = client.info()
            return told if isinstance(client, enclave.Client) else await told

        client = enclave.{kind}(start=False)
        asyncio.run(use(client))
        client.itself = client
        del client
        gc.collect()
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_the_program_with_an_open_stream_is_quiet(daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    done = run_alone("""
        import enclave
        client = enclave.Client(start=False)
        stream = client.generate("tiny", "x")
        pieces = iter(client.generate("tiny", "y"))
        next(pieces)
    """)
    assert (done.returncode, done.stderr) == (0, "")


# --- the last wins, also over a restart ---


def test_what_is_asked_after_a_loss_comes_after_what_was_lost(
    daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    daemon.answers["generate"] = say_nothing
    client = Client(start=False)
    oldest, old = (client.generate("tiny", text, supersedes="document") for text in ("oldest", "old"))
    other = client.generate("tiny", "other")
    daemon.wait_seen(Request, 3)
    second = make_daemon()
    second.answers["generate"] = echo
    announce(second.address)
    daemon.stop()
    with pytest.raises(enclave.CancelledError):
        oldest.result()
    new = client.generate("tiny", "new", supersedes="document")
    assert [stream.result().text for stream in (new, other, old)] == ["new", "other", "old"]
    from enclave.protocol import read_params

    requests: list[Any] = second.seen(Request)
    assert [read_params(request).prompt for request in requests] == ["old", "other", "new"]
    client.close()
