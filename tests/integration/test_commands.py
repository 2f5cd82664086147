"""The command line with a real daemon: what it tells of events, clients and receipts, and of what is not built."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enclave.protocol.bodies import EVENT_TOPICS
from enclave.protocol.methods import METHODS
from tests.conftest import StartDaemon
from tests.running import BIN, END_SECONDS, RunningDaemon, daemon_environment, run_enclave

SLOW = "fake:slow?tokens_per_second=50"


class Watch:
    """`enclave events --json`, an event at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the command has ended"
        return json.loads(line)

    def until(self, name: str, **data: object) -> dict[str, Any]:
        """The next event of this name whose data has these values."""
        while True:
            event = self.next()
            if event.get("name") == name and data.items() <= event["data"].items():
                return event


@contextmanager
def watching(home: Path, *topics: str) -> Generator[Watch]:
    process = subprocess.Popen(
        [BIN / "enclave", "events", *topics, "--json", "--no-start"],
        env=daemon_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Watch(process)
        finally:
            process.kill()


def test_events_shows_a_load_and_an_unload(daemon: RunningDaemon) -> None:
    with watching(daemon.home, "instances") as watch:
        assert watch.next()["data"] == {}
        assert run_enclave("load", "fake:a", home=daemon.home).returncode == 0
        assert watch.until("added", model="fake:a")["data"]["state"] in ("starting", "loading")
        ready = watch.until("changed", model="fake:a", state="ready")
        assert ready["data"]["memory"]["measured_bytes"] > 0
        assert run_enclave("unload", "fake:a", home=daemon.home).returncode == 0
        assert watch.until("removed", model="fake:a")["key"] == ready["key"]
        watch.process.send_signal(signal.SIGINT)
        out, err = watch.process.communicate(timeout=END_SECONDS)
    assert (watch.process.returncode, err) == (130, "")
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "cancelled"


def test_a_snapshot_tells_how_things_are_and_ends(daemon: RunningDaemon) -> None:
    run_enclave("load", "fake:a", home=daemon.home)
    done = run_enclave("events", "--snapshot", home=daemon.home)
    assert (done.returncode, done.stderr) == (0, "")
    (instance,) = [line for line in done.stdout.splitlines() if line.split()[1] == "instances"]
    assert "fake:a: state ready, backend fake, device cpu" in instance
    document = json.loads(run_enclave("events", "--snapshot", "--json", home=daemon.home).stdout)
    assert document.keys() == set(EVENT_TOPICS)


@pytest.mark.parametrize("ends", ["in good order", "at once"])
def test_events_ends_when_the_daemon_does(ends: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with watching(daemon.home, "instances") as watch:
        watch.next()
        if ends == "at once":
            daemon.kill()
        else:
            daemon.terminate()
        out, err = watch.process.communicate(timeout=END_SECONDS)
    assert (watch.process.returncode, err) == (4, "")
    assert json.loads(out.splitlines()[-1])["error"]["code"] in ("shutting_down", "connection_lost")


def test_ps_names_the_client_of_a_running_request_and_why_says_who_asked(daemon: RunningDaemon) -> None:
    with daemon.client(name="my-editor") as client:
        stream = client.generate(SLOW, "x", max_tokens=100_000)
        iterator = iter(stream)
        next(iterator)
        table = run_enclave("ps", home=daemon.home).stdout
        (instance,) = json.loads(run_enclave("ps", "--json", home=daemon.home).stdout)["instances"]
        story = run_enclave("why", home=daemon.home).stdout
        stream.cancel()
    assert "CLIENTS" in table.splitlines()[0]
    assert "  my-editor (1)  " in table.splitlines()[1]
    (asker,) = instance["askers"]
    assert (asker["name"], asker["running"]) == ("my-editor", 1)
    (arrived,) = [line for line in story.splitlines() if "RequestArrived" in line]
    assert "  asked by my-editor" in arrived


def test_verbose_prints_the_receipt_of_an_answer(daemon: RunningDaemon) -> None:
    done = run_enclave("run", "fake:a", "x", "--max-tokens", "3", "--temperature", "0", "--verbose", home=daemon.home)
    assert (done.returncode, done.stdout) == (0, "1 2")
    facts = dict(line.split(maxsplit=1) for line in done.stderr.splitlines())
    assert (facts["model"], facts["backend"], facts["device"]) == ("fake:a", "fake", "cpu")
    assert facts["context"] == "4,096 tokens"
    assert facts["answer"].startswith("3 tokens, ")
    assert facts["finish"] == "length"
    assert {"file", "instance", "queued", "loading", "prompt", "charged"} <= facts.keys()


NOT_BUILT = [
    (method, arguments)
    for method, arguments in (
        ("chat", ("run", "fake:a", "--messages", "-")),
        ("infill", ("infill", "fake:a", "--prefix", "a")),
        ("embed", ("embed", "fake:a", "text")),
        ("rerank", ("rerank", "fake:a", "query", "document")),
        ("tokenize", ("tokenize", "fake:a", "text")),
        ("detokenize", ("tokenize", "fake:a", "--ids", "1")),
        ("render", ("render", "fake:a", "--messages", "-")),
        ("models.pull", ("pull", "hf:owner/model")),
        ("downloads.list", ("downloads",)),
        ("downloads.cancel", ("downloads", "cancel", "d1")),
    )
    if not METHODS[method].built
]


def test_a_command_whose_method_is_not_built_says_so(daemon: RunningDaemon) -> None:
    talk = '[{"role": "user", "content": "Hello"}]'
    for method, arguments in NOT_BUILT:
        done = run_enclave(*arguments, home=daemon.home, stdin=talk)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr.splitlines()[0] == f"enclave: {method} is not built yet"
        assert done.stderr.splitlines()[1].startswith("hint: ")
        done = run_enclave(*arguments, "--json", home=daemon.home, stdin=talk)
        assert (done.returncode, done.stderr) == (1, ""), arguments
        assert json.loads(done.stdout)["error"]["code"] == "unsupported"
