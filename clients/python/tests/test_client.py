"""The blocking client against a scripted daemon on a real socket."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import zmq

import enclave
from enclave.client import Client
from enclave.connection import Connection
from enclave.conversation import Conversation
from enclave.protocol import (
    Cancel,
    Credit,
    Hello,
    Limits,
    Pong,
    Progress,
    Request,
    Result,
    failure,
    read_params,
    write_body,
)
from enclave.protocol.bodies import InstanceInfo, LoadResult, ModelInfo, ModelsResult
from enclave.protocol.session import Role, Session

if TYPE_CHECKING:
    from clients.python.tests.conftest import Exchange, ScriptedDaemon


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Generator[Client]:
    with Client(name="test", priority="interactive", start=False) as made:
        yield made


def hold(exchange: Exchange) -> None:
    """Say one thing and go silent."""
    exchange.chunks("first")


def say_again(exchange: Exchange) -> None:
    exchange.chunks("again")
    exchange.finish()


def test_a_stream_gives_chunks_in_order_and_then_the_whole(client: Client) -> None:
    stream = client.generate("tiny", "Once", temperature=0, max_tokens=3)
    assert [chunk.text for chunk in stream] == ["Hel", "lo", "!"]
    result = stream.result()
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("Hello!", "stop", 3)
    assert (result.receipt.model, result.receipt.device, result.receipt.queued_seconds) == ("tiny", "cpu", 0.25)


def test_result_needs_no_iteration(client: Client) -> None:
    assert client.generate("tiny", "Once").result().text == "Hello!"


def test_the_request_carries_what_was_asked_for(client: Client, daemon: ScriptedDaemon) -> None:
    options: Any = {"stop": "\n", "seed": 7, "max_tokens": 9, "backend": "fake", "priority": "background"}
    client.generate("tiny", [1, 2], **options).result()
    (request,) = daemon.seen(Request)
    assert isinstance(request, Request)
    assert (request.max_tokens, request.backend, request.priority) == (9, "fake", "background")
    assert b"\n" in request.body
    (hello,) = daemon.seen(Hello)
    assert isinstance(hello, Hello)
    assert (hello.client, hello.priority) == ("test", "interactive")


def test_an_unknown_option_is_a_type_error_and_nothing_is_sent(client: Client, daemon: ScriptedDaemon) -> None:
    options: Any = {"temprature": 1}
    with pytest.raises(TypeError, match="temprature"):
        client.generate("tiny", "x", **options)
    assert not daemon.seen(Request)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"priority": "urgent"}, "priority"), ({"choices": 0}, "choices"), ({"max_tokens": -1}, "max_tokens")],
)
def test_a_header_field_out_of_range_is_a_bad_request(client: Client, options: Any, field: str) -> None:
    with pytest.raises(enclave.BadRequestError) as caught:
        client.generate("tiny", "x", **options)
    assert caught.value.field == field
    assert client.generate("tiny", "x").result().text == "Hello!"


def test_streams_of_one_client_interleave(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = lambda exchange: exchange.chunks("a")
    first, second = iter(client.generate("tiny", "1")), iter(client.generate("tiny", "2"))
    assert next(first).text == "a"
    assert next(second).text == "a"
    one, two = daemon.exchanges.values()
    daemon.do(lambda: two.chunks("b"))
    assert next(second).text == "b"
    daemon.do(lambda: one.chunks("c"))
    assert next(first).text == "c"


def test_leaving_a_loop_early_cancels_the_request(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    for chunk in stream:
        assert chunk.text == "first"
        break
    daemon.wait_seen(Cancel)
    result = stream.result()
    assert (result.finish_reason, result.text) == ("cancelled", "first")


def test_leaving_a_with_block_cancels_the_request(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    with client.generate("tiny", "x"):
        pass
    daemon.wait_seen(Cancel)


def test_a_finished_request_is_not_cancelled(client: Client, daemon: ScriptedDaemon) -> None:
    with client.generate("tiny", "x") as stream:
        stream.result()
    client.info()
    assert not daemon.seen(Cancel)


def interrupt_the_next_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as it mostly comes: a real signal, while the client waits."""
    poll = zmq.Poller.poll

    def interrupted(self: zmq.Poller, timeout: int | None = None) -> Any:
        if threading.current_thread() is threading.main_thread():  # the scripted daemon polls too
            monkeypatch.setattr(zmq.Poller, "poll", poll)
            signal.raise_signal(signal.SIGINT)
        return poll(self, timeout)

    monkeypatch.setattr(zmq.Poller, "poll", interrupted)


def test_ctrl_c_inside_iteration_cancels_and_leaves_the_client_usable(
    client: Client, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    seen: list[str] = []

    def read() -> None:
        for chunk in stream:
            seen.append(chunk.text)
            interrupt_the_next_poll(monkeypatch)

    with pytest.raises(KeyboardInterrupt):
        read()
    daemon.wait_seen(Cancel)
    assert seen == ["first"]
    assert stream.result().finish_reason == "cancelled"
    daemon.answers["generate"] = say_again
    assert client.generate("tiny", "x").result().text == "again"
    assert len(daemon.seen(Hello)) == 1


def test_ctrl_c_spares_the_other_streams(
    client: Client, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["generate"] = hold
    other = iter(client.generate("tiny", "x"))
    assert next(other).text == "first"
    interrupt_the_next_poll(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        client.generate("tiny", "y").result()
    (exchange, *_) = daemon.exchanges.values()
    daemon.do(lambda: exchange.chunks("second"))
    assert next(other).text == "second"


def test_ctrl_c_in_the_middle_of_a_message_ends_the_connection_and_the_next_call_makes_another(
    client: Client, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Conversation.receive

    def interrupted(self: Conversation, frames: list[bytes]) -> Any:
        monkeypatch.setattr(Conversation, "receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "receive", interrupted)
    stream = client.generate("tiny", "x")
    with pytest.raises(KeyboardInterrupt):
        stream.result()
    with pytest.raises(enclave.ConnectionLostError):
        stream.result()
    assert client.generate("tiny", "x").result().text == "Hello!"
    assert len(daemon.seen(Hello)) == 2


def test_a_slow_reader_is_owed_joined_chunks_and_loses_none(client: Client, daemon: ScriptedDaemon) -> None:
    def many(exchange: Exchange) -> None:
        exchange.chunks(*(f"{number} " for number in range(1000)))
        exchange.finish()

    daemon.answers["generate"] = many
    stream = client.generate("tiny", "x", credit=4)
    texts = [chunk.text for chunk in stream]
    assert texts == [f"{number} " for number in range(1000)]
    assert stream.result().text == "".join(texts)
    assert 1 <= len(daemon.seen(Credit)) <= 4


def test_a_stream_without_credit_gets_it_by_waiting_for_the_result(client: Client, daemon: ScriptedDaemon) -> None:
    def spell(exchange: Exchange) -> None:
        exchange.chunks(*"abcdef")
        exchange.finish()

    daemon.answers["generate"] = spell
    assert client.generate("tiny", "x", credit=1).result().text == "abcdef"


def test_progress_is_iterated_only_when_asked_for(client: Client) -> None:
    kinds = [type(item) for item in client.generate("tiny", "x", events=True)]
    assert kinds[0] is Progress
    assert Progress not in [type(item) for item in client.generate("tiny", "x")]


def test_the_progress_function_is_called_while_the_result_is_waited_for(client: Client) -> None:
    told: list[Progress] = []
    client.generate("tiny", "x", progress=told.append).result()
    assert [news.fraction for news in told] == [0.5]


def test_an_error_of_the_daemon_is_raised_with_all_it_says(client: Client, daemon: ScriptedDaemon) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.send(
            failure(exchange.request.id, "busy", "queue full", retry_after=2.0, numbers={"queued": 9}, detail="x")
        )

    daemon.answers["generate"] = fail
    with pytest.raises(enclave.BusyError, match="queue full") as caught:
        client.generate("tiny", "x").result()
    error = caught.value
    assert (error.code, error.retryable, error.retry_after) == ("busy", True, 2.0)
    assert (error.numbers, error.detail) == ({"queued": 9}, "x")


def test_an_error_after_chunks_is_raised_by_iteration_after_the_chunks(client: Client, daemon: ScriptedDaemon) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.chunks("a", "b")
        exchange.send(failure(exchange.request.id, "worker_died"))

    daemon.answers["generate"] = fail
    seen: list[str] = []
    with pytest.raises(enclave.WorkerDiedError):
        seen.extend(chunk.text for chunk in client.generate("tiny", "x"))
    assert not seen or seen == ["a", "b"]


def test_what_is_not_built_yet_says_so(client: Client) -> None:
    with pytest.raises(enclave.UnsupportedError):
        client.embed("minilm", ["a"])
    with pytest.raises(enclave.UnsupportedError):
        client.chat("tiny", [{"role": "user", "content": "hi"}]).result()


def test_load_waits_unless_told_otherwise(client: Client, daemon: ScriptedDaemon) -> None:
    instance = InstanceInfo(id="i1", model="tiny", state="ready", wanted="ready", backend="fake")

    def load(exchange: Exchange) -> None:
        exchange.send(Progress(id=exchange.request.id, stage=enclave.Stage.LOADING, fraction=0.4))
        exchange.send(Result(id=exchange.request.id, body=write_body(LoadResult(instance=instance))))

    daemon.answers["instances.load"] = load
    assert client.load("tiny", context=512).done
    stream = client.load("tiny", wait=False)
    assert [news.fraction for news in stream] == [0.4]
    assert stream.result().instance == instance


def test_lists_come_as_lists_of_typed_rows(client: Client, daemon: ScriptedDaemon) -> None:
    rows = ModelsResult(models=(ModelInfo(name="tiny", source="builtin", size=5, capabilities=("generate",)),))
    daemon.answers["models.list"] = lambda exchange: exchange.send(
        Result(id=exchange.request.id, body=write_body(rows))
    )
    (model,) = client.models()
    assert (model.name, model.size, model.capabilities) == ("tiny", 5, ("generate",))


def test_the_models_come_from_all_pages(client: Client, daemon: ScriptedDaemon) -> None:
    names = [f"m{number}" for number in range(7)]

    def page(exchange: Exchange) -> None:
        after = read_params(exchange.request).after
        begin = names.index(after) + 1 if after else 0
        models = tuple(ModelInfo(name=name, source="one", size=0) for name in names[begin : begin + 3])
        more = models[-1].name if begin + 3 < len(names) else None
        exchange.send(Result(id=exchange.request.id, body=write_body(ModelsResult(models=models, next=more))))

    daemon.answers["models.list"] = page
    assert [model.name for model in client.models()] == names
    assert asyncio.run(_names_of(daemon)) == names


async def _names_of(daemon: ScriptedDaemon) -> list[str]:
    async with enclave.AsyncClient(endpoint=daemon.address, start=False) as client:
        return [model.name for model in await client.models()]


def test_a_vanished_daemon_ends_open_requests_and_the_next_call_says_so(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    daemon.wait_seen(Request)
    daemon.stop()
    with pytest.raises(enclave.ConnectionLostError) as caught:
        stream.result()
    assert caught.value.retryable
    with pytest.raises(enclave.DaemonUnavailableError):
        client.info()


def test_what_the_daemon_said_before_it_vanished_is_not_lost(client: Client, daemon: ScriptedDaemon) -> None:
    stream = client.generate("tiny", "x")
    daemon.wait_seen(Request)
    daemon.stop(linger_ms=10_000)
    assert stream.result().text == "Hello!"


def test_after_a_lost_daemon_the_client_finds_the_new_one(
    client: Client, daemon: ScriptedDaemon, make_daemon: Callable[..., ScriptedDaemon], announce: Callable[[str], None]
) -> None:
    assert client.info().endpoint == daemon.address
    daemon.stop()
    second = make_daemon()
    announce(second.address)
    answers: list[str] = []
    try:
        answers.append(client.info().endpoint)
    except enclave.ConnectionLostError:  # the loss may be found out only now
        answers.append(client.info().endpoint)
    assert answers == [second.address]


def test_too_large_is_found_before_sending(make_daemon: Callable[..., ScriptedDaemon], daemon: ScriptedDaemon) -> None:
    small = make_daemon(Limits(body_bytes=100))
    with Client(endpoint=small.address) as client:
        with pytest.raises(enclave.TooLargeError) as caught:
            client.generate("tiny", "x" * 200)
        assert caught.value.numbers["size_max"] == 100
        assert client.generate("tiny", "x").result().text == "Hello!"


def test_another_version_of_the_daemon_is_told_as_such(daemon: ScriptedDaemon) -> None:
    daemon.greeting = lambda peer: failure(None, "version_mismatch", numbers={"client": 1, "daemon": 2})
    with pytest.raises(enclave.VersionMismatchError) as caught, Client(start=False):
        pass
    assert caught.value.numbers == {"client": 1, "daemon": 2}


def test_nobody_at_the_endpoint_is_an_error_that_names_it(where: object, tmp_path: object) -> None:
    client = Client(endpoint=f"ipc://{tmp_path}/nobody", timeout=5)
    with pytest.raises(enclave.DaemonUnavailableError, match="nobody"):
        client.info()


def test_a_daemon_that_never_welcomes_runs_into_the_timeout(daemon: ScriptedDaemon) -> None:
    daemon.greeting = lambda peer: Pong()
    with pytest.raises(enclave.DaemonUnavailableError, match=r"daemon \(pid [0-9]+\) does not answer") as caught:
        Client(start=False, timeout=0.2).info()
    assert "kill " in caught.value.hint
    assert "enclaved.log" in caught.value.hint


def test_an_unknown_priority_brings_the_choices() -> None:
    with pytest.raises(enclave.BadRequestError, match="interactive, normal, background, not 'high'"):
        Client(priority=cast("Any", "high"))


def test_a_path_names_a_model_from_the_current_folder(
    client: Client, daemon: ScriptedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client.generate(Path("a.gguf"), "Once").result()
    with pytest.raises(enclave.UnsupportedError):  # this daemon has no such method, but has seen what it was asked
        client.load(Path("a.gguf"))
    generate, load = daemon.seen(Request)
    assert isinstance(generate, Request)
    assert isinstance(load, Request)
    assert generate.model == str(tmp_path / "a.gguf")
    assert str(tmp_path / "a.gguf").encode() in load.body


def test_without_start_no_daemon_is_started(where: object) -> None:
    with pytest.raises(enclave.DaemonUnavailableError, match="no daemon is running"):
        Client(start=False).info()


def test_closing_ends_open_streams_as_cancelled(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    stream = client.generate("tiny", "x")
    client.close()
    with pytest.raises(enclave.CancelledError):
        stream.result()


def test_the_repr_tells_where_it_is_and_what_is_open(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    assert repr(client) == f"<Client 'test' at {daemon.address}, 0 open>"
    stream = client.generate("tiny", "secret")
    assert repr(client) == f"<Client 'test' at {daemon.address}, 1 open>"
    assert repr(stream) == "<Stream generate 1, open>"
    client.close()
    assert repr(client) == "<Client 'test', not connected>"


def test_two_threads_with_a_client_each_do_not_meet(daemon: ScriptedDaemon) -> None:
    texts: list[str] = []

    def talk() -> None:
        with Client(start=False) as mine:
            texts.append(mine.generate("tiny", "x").result().text)

    threads = [threading.Thread(target=talk) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["Hello!", "Hello!"]


def test_a_body_that_makes_no_sense_fails_its_own_call_only(client: Client, daemon: ScriptedDaemon) -> None:
    def babble(exchange: Exchange) -> None:
        exchange.joiner.put(b"\xc1")
        exchange.flush()

    daemon.answers["generate"] = hold
    other = iter(client.generate("tiny", "x"))
    assert next(other).text == "first"
    daemon.answers["generate"] = babble
    with pytest.raises(enclave.BadMessageError):
        client.generate("tiny", "x").result()
    daemon.wait_seen(Cancel)
    (exchange, *_) = daemon.exchanges.values()
    daemon.do(lambda: exchange.chunks("second"))
    assert next(other).text == "second"


def test_a_session_of_the_daemon_keeps_nothing_of_finished_requests(client: Client, daemon: ScriptedDaemon) -> None:
    client.generate("tiny", "x").result()
    client.info()
    (session,) = {exchange.session for exchange in daemon.exchanges.values()}
    assert isinstance(session, Session)
    assert session.role is Role.DAEMON
    assert session.open_ids == ()


def test_a_stream_that_nobody_holds_any_more_is_cancelled(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.answers["generate"] = hold
    client.generate("tiny", "x")
    daemon.wait_seen(Cancel)
    in_a_cycle: list[Any] = [client.generate("tiny", "x")]
    in_a_cycle.append(in_a_cycle)
    del in_a_cycle
    gc.collect()
    daemon.wait_seen(Cancel, 2)


def test_a_stream_that_is_iterated_is_held_by_its_iterator(client: Client) -> None:
    pieces = iter(client.generate("tiny", "x"))
    gc.collect()
    assert [chunk.text for chunk in pieces] == ["Hel", "lo", "!"]


def test_text_has_what_came_also_after_the_end_by_force(client: Client, daemon: ScriptedDaemon) -> None:
    def refuse_to_go_on(exchange: Exchange) -> None:
        exchange.chunks("a", "b")
        exchange.send(failure(exchange.request.id, "cancelled"))

    daemon.answers["generate"] = refuse_to_go_on
    stream = client.generate("tiny", "x")
    with pytest.raises(enclave.CancelledError):
        stream.result()
    assert stream.text == "ab"
    assert client.events().text == ""


@pytest.mark.parametrize("asks", ["result", "iteration"])
def test_a_progress_function_that_raises_cancels_the_request(client: Client, daemon: ScriptedDaemon, asks: str) -> None:
    def go_on_for_ever(exchange: Exchange) -> None:
        exchange.send(Progress(id=exchange.request.id, stage=enclave.Stage.LOADING, fraction=0.5))

    def give_up(news: Progress) -> None:
        raise ZeroDivisionError

    daemon.answers["generate"] = go_on_for_ever
    stream = client.generate("tiny", "x", progress=give_up)
    with pytest.raises(ZeroDivisionError):
        stream.result() if asks == "result" else list(stream)
    daemon.wait_seen(Cancel)
    assert repr(client).endswith("0 open>")


def test_a_loss_between_the_look_and_the_lock_is_noticed(
    client: Client, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = Connection.usable
    client.info()

    def lost_after_the_look(self: Connection) -> bool:
        monkeypatch.setattr(Connection, "usable", usable)
        self.close()
        return True

    monkeypatch.setattr(Connection, "usable", property(lost_after_the_look))
    assert client.info().version == "1"
    assert len(daemon.seen(Hello)) == 2


@pytest.mark.parametrize("credit", [0, 1])
def test_a_stream_with_little_credit_is_iterated_to_its_end(
    client: Client, daemon: ScriptedDaemon, credit: int
) -> None:
    def spell(exchange: Exchange) -> None:
        exchange.chunks(*"abcdef")
        exchange.finish()

    daemon.answers["generate"] = spell
    assert "".join(chunk.text for chunk in client.generate("tiny", "x", credit=credit)) == "abcdef"
    assert client.generate("tiny", "x", credit=credit).result().text == "abcdef"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": 3}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"endpoint": 3}, "endpoint"),
        ({"timeout": "long"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": -1}, "timeout"),
    ],
)
@pytest.mark.parametrize("kind", [Client, enclave.AsyncClient])
def test_a_wrong_option_of_the_client_is_refused_at_once(kind: Any, options: Any, field: str) -> None:
    with pytest.raises(enclave.BadRequestError, match=f"{field}: expected") as caught:
        kind(**options)
    assert caught.value.field == field


def test_an_endpoint_that_is_no_address_is_told_as_such() -> None:
    with pytest.raises(enclave.DaemonUnavailableError, match="nonsense"):
        Client(endpoint="nonsense").info()


def test_a_program_whose_name_is_no_text_has_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["/bin/\udcff" + "x" * 300]):
        monkeypatch.setattr(sys, "argv", arguments)
        assert Client(start=False).__class__ is Client
