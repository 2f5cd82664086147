"""What the protocol promises, on the wire and through everything behind it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import enclave
from enclave.protocol import Cancel, Chunk, Credit, Error, Progress, Request, Result, Stage, read_chunks, write_body
from enclave.protocol.bodies import EventChunk, EventsParams, GenerateParams
from enclave.protocol.packing import pack
from tests.conftest import StartDaemon
from tests.integration.wire import WireClient, wait_for_instance
from tests.running import RunningDaemon


def end_of(client: WireClient) -> Result | Error:
    """The end of the one call that is open."""
    while not isinstance(message := client.next(), (Result, Error)):
        continue
    return message


# --- bodies ---


@pytest.mark.parametrize(
    "body", [b"\xc1no MessagePack at all\xff\x00", b"", b"\x81\xa6prompt", bytes(range(256)) * 4], ids=repr
)
def test_a_body_reaches_the_backend_as_the_very_bytes_that_were_sent(daemon: RunningDaemon, body: bytes) -> None:
    with WireClient(daemon.endpoint) as client:
        client.hello()
        client.send(Request(id=1, method="generate", model="fake:bodies?mode=body", credit=65_536, body=body))
        got = b""
        while not isinstance(message := client.next(), Result):
            assert isinstance(message, (Chunk, Progress)), message
            if isinstance(message, Chunk):
                got += b"".join(bytes(value.tokens) for value in read_chunks("generate", message))
    assert got == body


SECRET = "the prompt that nobody else may read"


@pytest.mark.parametrize(
    ("model", "deadline"),
    [
        ("fake:a", None),
        ("fake:a?context=16", None),
        ("fake:dies?crash_at_token=1", None),
        ("fake:a", 0.001),
        ("fake:slow?tokens_per_second=1", 0.5),
        ("fake:a?load_fails=no", None),
        ("fake:unknown?nothing=1", None),
    ],
)
def test_neither_log_nor_story_nor_an_errors_header_holds_a_prompt(
    start_daemon: StartDaemon, model: str, deadline: float | None
) -> None:
    daemon = start_daemon({"ENCLAVE_LOG_LEVEL": "debug"})
    with daemon.client() as client, WireClient(daemon.endpoint) as wire:
        wire.hello()
        wire.send(
            Request(
                id=1,
                method="generate",
                model=model,
                deadline=deadline,
                max_tokens=8,
                credit=65_536,
                body=write_body(GenerateParams(prompt=SECRET, stop=(SECRET,))),
            )
        )
        while not isinstance(end := wire.next(), (Result, Error)):
            continue
        assert SECRET not in repr(replace(end, body=b""))
        assert SECRET not in str(client.why(limit=1000))
    assert SECRET not in daemon.log()


def test_a_body_that_makes_no_sense_is_told_without_quoting_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_LOG_LEVEL": "debug"})
    with WireClient(daemon.endpoint) as client:
        client.hello()
        client.send(Request(id=1, method="generate", model="fake:a", body=b"\xc1" + SECRET.encode()))
        while not isinstance(error := client.next(), Error):
            continue
        assert (error.code, SECRET in repr(error)) == ("bad_request", False)
        client.send(Request(id=2, method="scheduler.why", body=b"\xa3" + SECRET.encode()))
        error = client.next()
        assert isinstance(error, Error)
        assert (error.code, SECRET in repr(error)) == ("bad_request", False)
    assert SECRET not in daemon.log()


@pytest.mark.parametrize(
    ("method", "body", "field"),
    [
        ("models.show", {"model": 7}, "model"),
        ("events.subscribe", {"topics": ["x"]}, "topics[0]"),
        ("scheduler.why", {"limit": 0}, "limit"),
        ("instances.load", {"model": "fake:a", "threads": 0}, "threads"),
        ("instances.unload", {}, "model"),
        ("daemon.health", [1], "body"),
        ("generate", {"prompt": "x", "temperature": -1}, "temperature"),
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", [1], "body"),
    ],
)
def test_an_error_about_a_body_names_the_field(daemon: RunningDaemon, method: str, body: object, field: str) -> None:
    with WireClient(daemon.endpoint) as client:
        client.hello()
        client.send(Request(id=1, method=method, model="fake:a", body=pack(body)))
        error = end_of(client)
        assert isinstance(error, Error)
        assert (error.code, error.field) == ("bad_request", field)


# --- who no longer waits ---


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("instances.unload", {"model": "fake:slow?tokens_per_second=0.01"}),
        ("instances.load", {"model": "fake:late?load_seconds=600"}),
        ("events.subscribe", {"topics": ["instances"]}),
    ],
)
def test_what_waits_ends_with_its_deadline_and_with_its_cancel(
    daemon: RunningDaemon, method: str, body: dict[str, object]
) -> None:
    with daemon.client() as other, WireClient(daemon.endpoint) as client:
        client.hello()
        running = other.generate("fake:slow?tokens_per_second=0.01", "x")
        wait_for_instance(other, lambda instance: instance.get("leases") == 1)
        client.send(Request(id=1, method=method, deadline=0.2, body=pack(body)))
        error = end_of(client)
        assert isinstance(error, Error)
        assert (error.id, error.code, error.retryable) == (1, "deadline", True)
        client.send(Request(id=2, method=method, body=pack(body)))
        client.send(Cancel(id=2))
        error = end_of(client)
        assert isinstance(error, Error)
        assert (error.id, error.code) == (2, "cancelled")
        running.cancel()


@pytest.mark.asyncio
async def test_as_many_answers_as_a_session_may_have_open_are_given(daemon: RunningDaemon) -> None:
    async with enclave.AsyncClient(endpoint=daemon.endpoint, start=False) as client:
        streams = [client.generate("fake:a?sequences=4", str(number), max_tokens=1) for number in range(256)]
        results = await asyncio.gather(*[stream.result() for stream in streams])
    assert len(results) == 256


# --- waiting is explained, typed ---


def test_a_request_is_told_what_it_waits_for_from_the_queue_to_its_prompt(daemon: RunningDaemon) -> None:
    model = "fake:slow?tokens_per_second=50&sequences=1&prompt_tokens_per_second=5000&batch_tokens=100&load_seconds=0.3"
    with daemon.client() as client:
        news: list[Progress] = []
        first = client.generate(model, "x" * 1000, max_tokens=20)
        second = client.generate(model, "y" * 1000, max_tokens=1, progress=news.append)
        second.result()
        first.cancel()
    queued = [each for each in news if each.stage is Stage.QUEUED]
    loading = [each.fraction for each in news if each.stage is Stage.LOADING and each.fraction is not None]
    prompt = [(each.done or 0, each.total) for each in news if each.stage is Stage.PROMPT]
    assert (queued[-1].position, queued[-1].ahead, queued[-1].reason) == (1, 0, "busy")
    assert loading == sorted(loading)
    assert len(loading) > 3
    assert prompt == sorted(prompt, key=lambda part: part[0])
    assert len(prompt) > 3
    assert {total for _, total in prompt} == {1002}


# --- the latest wins ---


@pytest.mark.asyncio
async def test_twenty_keystrokes_evaluate_less_than_two_prompts(daemon: RunningDaemon) -> None:
    """Each one supersedes the one before; what it has cost stands in the numbers of its error."""
    prompt = "x" * 4000
    model = "fake:editor?prompt_tokens_per_second=4000&batch_tokens=64&context=8192&sequences=4"
    async with enclave.AsyncClient(endpoint=daemon.endpoint, start=False, priority="interactive") as client:
        await client.load(model, context=8192)

        async def complete(number: int, begun: asyncio.Event) -> enclave.TextResult:
            stream = client.generate(
                model,
                f"{prompt}{number}",
                max_tokens=1,
                context=8192,
                supersedes="file:a.py",
                progress=lambda news: begun.set() if news.stage is Stage.PROMPT and news.done else None,
            )
            return await stream.result()

        tasks: list[asyncio.Task[Any]] = []
        for number in range(20):
            begun = asyncio.Event()
            tasks.append(asyncio.create_task(complete(number, begun)))
            # The next key is pressed when some of this prompt is evaluated, or taken from the one before.
            await begun.wait()
        *superseded, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert not isinstance(last, BaseException)
    assert last.usage.completion_tokens == 1
    cancelled = [error for error in superseded if isinstance(error, enclave.CancelledError)]
    assert cancelled == superseded
    evaluated = [error.numbers["evaluated_tokens"] for error in cancelled]
    assert evaluated[0] > 0
    assert sum(evaluated) + last.usage.prompt_tokens < 2 * last.usage.prompt_tokens


# --- receipts ---


def test_every_result_of_a_model_is_a_receipt(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        receipt = client.generate("fake:a?load_seconds=0.1", "x", max_tokens=3).result().receipt
        again = client.generate("fake:a?load_seconds=0.1", "x", max_tokens=3).result().receipt
    assert receipt.model == "fake:a?load_seconds=0.1"
    assert receipt.model_hash is not None
    assert receipt.model_hash.startswith("sha256:")
    assert (receipt.backend, receipt.device, receipt.template) == ("fake", "cpu", None)
    assert (receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens) == (3, 0, 3)
    assert receipt.uncached_reason
    assert (receipt.loading_seconds or 0) >= 0.1
    assert again.loading_seconds == 0
    for seconds in (receipt.queued_seconds, receipt.prompt_seconds, receipt.decoding_seconds, receipt.charged_seconds):
        assert seconds is not None
        assert seconds >= 0
    assert receipt.preempted == 0
    assert again.model_hash == receipt.model_hash


@pytest.mark.usefixtures("llama_cpp")
def test_a_file_is_known_by_device_inode_size_and_time_until_its_hash_is(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        receipt = client.generate("tiny", "Hello", max_tokens=2).result().receipt
        path = client.show("tiny").path
    assert path is not None
    status = Path(path).stat()
    parts = (f"{status.st_dev:x}", f"{status.st_ino:x}", str(status.st_size), str(status.st_mtime_ns))
    assert receipt.model_hash == "file:" + "-".join(parts)


# --- who asks ---


def test_the_daemon_says_who_asked(daemon: RunningDaemon) -> None:
    with daemon.client(name="my-editor") as client:
        pieces = iter(client.generate("fake:slow?tokens_per_second=50", "x", max_tokens=10_000))
        next(pieces)
        (instance,) = client.instances()
        (asker,) = instance.askers
        assert (asker.name, asker.running, asker.queued) == ("my-editor", 1, 0)
        arrived = [record for record in client.why() if record.kind == "event RequestArrived"]
    if sys.platform == "linux":
        assert asker.pid == os.getpid()
        assert asker.program == str(Path("/proc/self/exe").resolve())
        assert (arrived[0].data or {})["asker"] == f"my-editor (pid {asker.pid}, {asker.program})"


# --- events ---


def test_a_subscriber_sees_a_model_come_work_and_go(daemon: RunningDaemon) -> None:
    with daemon.client() as client, daemon.client() as other, client.events("instances") as events:
        iterator = iter(events)
        snapshot = next(iterator)
        assert (snapshot.topic, snapshot.name, snapshot.data) == ("instances", "snapshot", {})
        other.generate("fake:a?load_seconds=0.1", "x", max_tokens=2).result()
        other.unload("fake:a?load_seconds=0.1")
        told: list[EventChunk] = []
        while not told or told[-1].name != "removed":
            told.append(next(iterator))
    assert [event.number - snapshot.number for event in told] == list(range(1, len(told) + 1))
    assert told[0].name == "added"
    assert {event.key for event in told} == {told[0].key}
    states = [(event.data or {}).get("state") for event in told]
    assert states[0] == "loading"
    assert "ready" in states
    assert [(event.data or {}).get("leases", 0) for event in told].count(1) >= 1


def test_every_topic_begins_with_its_snapshot_and_a_filter_leaves_the_others_out(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        with client.events() as events:
            iterator = iter(events)
            first = [next(iterator) for _ in range(4)]
        with client.events("hardware") as events:
            hardware = next(iter(events))
    assert [(event.topic, event.name) for event in first] == [
        ("models", "snapshot"),
        ("instances", "snapshot"),
        ("downloads", "snapshot"),
        ("hardware", "snapshot"),
    ]
    assert "tiny" in (first[0].data or {})
    assert (hardware.topic, list(hardware.data or {})) == ("hardware", ["cpu"])
    assert json.dumps(hardware.data)


def test_a_subscriber_that_falls_behind_is_told_so_and_gets_a_new_snapshot(daemon: RunningDaemon) -> None:
    with daemon.client() as other, WireClient(daemon.endpoint) as slow:
        slow.hello()
        body = write_body(EventsParams(topics=("instances",)))
        slow.send(Request(id=1, method="events.subscribe", credit=1, body=body))
        first = slow.next()
        assert isinstance(first, Chunk)
        for _ in range(150):
            other.generate("fake:a", "x", max_tokens=1).result()
        other.unload("fake:a")
        slow.send(Credit(id=1, chunks=100))
        values: list[EventChunk] = []
        while [value.name for value in values[-2:]] != ["behind", "snapshot"]:
            message = slow.next()
            assert isinstance(message, Chunk)
            values += read_chunks("events.subscribe", message)
        assert (values[-1].data, len(values)) == ({}, 2)
        other.load("fake:b")
        after = slow.next()
        assert isinstance(after, Chunk)
        assert next(iter(read_chunks("events.subscribe", after))).name == "added"


def test_a_subscription_ends_with_its_cancel_and_with_the_daemon(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        stream = client.events("instances")
        iterator = iter(stream)
        next(iterator)
        stream.cancel()
        with pytest.raises(enclave.CancelledError):
            stream.result()
        lasting = iter(client.events("instances"))
        next(lasting)
        daemon.terminate()
        with pytest.raises(enclave.EnclaveError) as caught:
            list(lasting)
        assert caught.value.code in ("shutting_down", "connection_lost")
    daemon.start()


# --- restarts ---


def test_a_client_outlives_its_daemon(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        begun = iter(client.generate("fake:slow?tokens_per_second=50", "x", max_tokens=10_000))
        next(begun)
        waiting = client.generate("fake:slow?load_seconds=5", "x", temperature=0, max_tokens=4)
        wait_for_instance(client, lambda instance: instance["state"] == "loading")
        daemon.kill()
        daemon.start()
        with pytest.raises(enclave.ConnectionLostError) as caught:
            list(begun)
        assert caught.value.request is not None
        assert (caught.value.request.had_begun, caught.value.request.method) == (True, "generate")
        assert waiting.result().text == "1 2 "
