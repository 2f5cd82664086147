"""The command line with a real daemon: what it tells of events, clients and receipts, and of what is not built."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from enclave.paths import places
from enclave.protocol.bodies import EVENT_TOPICS
from enclave.protocol.methods import METHODS
from enclave_cli.commands.load import KV_TYPES
from enclaved.plugin.engine import Placement, Sampling
from tests.conftest import StartDaemon
from tests.running import BIN, END_SECONDS, REPOSITORY, RunningDaemon, daemon_environment, run_enclave

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


def test_the_help_tells_how_tokens_are_drawn_by_default(home: Path) -> None:
    usual = Sampling()
    shown = " ".join(run_enclave("run", "--help", home=home).stdout.split())
    page = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    for option in ("temperature", "top-k", "top-p", "min-p"):
        default = f"by default {getattr(usual, option.replace('-', '_'))}."
        (told,) = [row for row in page.splitlines() if row.startswith("| `--" + option) and "by default" in row]
        description = told.strip(" |").rpartition(" | ")[2]
        assert description.endswith(default)
        assert description in shown


def test_the_types_of_a_cache_are_those_that_a_backend_may_be_asked_for() -> None:
    assert get_args(get_type_hints(Placement)["kv_type"]) == KV_TYPES


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


# --- the daemon itself ---


@contextmanager
def on_a_terminal(home: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """A command whose standard error is a terminal, and the other side of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIN / "enclave", *arguments],
        env=daemon_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    with process:
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(terminal: int, words: str) -> str:
    """What is shown, up to these words."""
    shown = ""
    while words not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown


def read_to_the_end(terminal: int) -> str:
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that nobody has the other side open
            piece = b""
        if not piece:
            return shown.decode()
        shown += piece


def test_without_a_daemon_status_and_stop_say_so_and_start_none(home: Path) -> None:
    status = run_enclave("status", home=home)
    assert (status.returncode, status.stderr) == (4, "")
    assert status.stdout.startswith("No daemon is running.\n")
    assert str(home / "logs" / "enclaved.log") in status.stdout
    assert json.loads(run_enclave("status", "--json", home=home).stdout)["running"] is False
    stop = run_enclave("stop", home=home)
    assert (stop.returncode, stop.stdout, stop.stderr) == (0, "No daemon is running.\n", "")
    assert json.loads(run_enclave("stop", "--json", home=home).stdout) == {"stopped": False, "pid": None}
    assert not places({"ENCLAVE_HOME": str(home)}).state_file.exists()


def test_status_tells_which_daemon_runs(daemon: RunningDaemon) -> None:
    done = run_enclave("status", home=daemon.home)
    assert (done.returncode, done.stderr) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (facts["daemon"], facts["pid"]) == ("running, ok", str(daemon.process.pid))
    assert facts["endpoint"] == daemon.endpoint
    assert facts["config"] == str(daemon.home / "config" / "enclave.toml")
    document = json.loads(run_enclave("status", "--json", home=daemon.home).stdout)
    assert (document["running"], document["pid"], document["instances"]) == (True, daemon.process.pid, 0)
    assert document["uptime_seconds"] > 0


def test_stop_ends_the_daemon_and_what_belongs_to_it(daemon: RunningDaemon) -> None:
    run_enclave("load", "fake:a", home=daemon.home)
    daemon.note_children()
    done = run_enclave("stop", home=daemon.home)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"The daemon (pid {daemon.process.pid}) has ended.\n", "")
    assert daemon.process.wait(END_SECONDS) == 0
    assert run_enclave("status", home=daemon.home).returncode == 4


def test_stop_waits_for_a_running_request_and_says_whose_it_is(daemon: RunningDaemon) -> None:
    with daemon.client(name="my-editor") as client:
        stream = client.generate(SLOW, "x", max_tokens=100_000)
        pieces = iter(stream)
        next(pieces)
        with on_a_terminal(daemon.home, "stop") as (process, terminal):
            read_until(terminal, "waiting for 1 request of my-editor")
            next(pieces)
            assert (process.poll(), daemon.process.poll()) == (None, None)
            stream.cancel()
            assert process.wait(END_SECONDS) == 0
    assert daemon.process.wait(END_SECONDS) == 0


def test_unload_says_on_a_terminal_whose_requests_it_waits_for(daemon: RunningDaemon) -> None:
    with daemon.client(name="my-editor") as client:
        stream = client.generate(SLOW, "x", max_tokens=100_000)
        pieces = iter(stream)
        next(pieces)
        (instance,) = client.instances()
        with on_a_terminal(daemon.home, "unload", instance.id) as (process, terminal):
            read_until(terminal, "waiting for 1 request of my-editor")
            next(pieces)
            assert process.poll() is None
            stream.cancel()
            assert process.wait(END_SECONDS) == 0
            assert process.stdout is not None
            assert process.stdout.read() == f"{instance.id} was unloaded\n".encode()
        story = run_enclave("why", instance.id, "--json", home=daemon.home)
        assert story.returncode == 0
        assert any("Unload" in record["kind"] for record in json.loads(story.stdout)["records"])
        requests = json.loads(run_enclave("why", "c1", "--json", home=daemon.home).stdout)["records"]
        assert {"event RequestArrived", "event RequestFinished"} & {record["kind"] for record in requests}


def test_stop_now_waits_for_nobody(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        stream = client.generate(SLOW, "x", max_tokens=100_000)
        pieces = iter(stream)
        next(pieces)
        assert run_enclave("stop", "--now", home=daemon.home).returncode == 0
    assert daemon.process.wait(END_SECONDS) == 0


def test_a_daemon_that_hangs_is_told_of_and_how_to_end_it(daemon: RunningDaemon) -> None:
    pid = daemon.process.pid
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with on_a_terminal(daemon.home, "ps", "--no-start") as (process, terminal):
            read_until(terminal, f"waiting for the daemon (pid {pid})")
            assert f"hint: End it with `kill {pid}`" in read_to_the_end(terminal)
            assert process.wait(END_SECONDS) == 4
        status = run_enclave("status", home=daemon.home)
        assert (status.returncode, status.stdout) == (4, "")
        assert f"(pid {pid}) does not answer" in status.stderr
    finally:
        daemon.process.send_signal(signal.SIGCONT)
