"""A client that is killed has its work cancelled, what waits too, and its leases returned; soon, and once."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from enclave.protocol import Cancel, Error
from tests.integration.wire import WireClient, wait_for_instance
from tests.running import RunningDaemon

WITHIN_SECONDS = 2.0
MODEL = "fake:slow?tokens_per_second=50&sequences=1"

CLIENT = """
    import enclave, sys, threading
    with enclave.Client(endpoint=sys.argv[1], start=False, name="doomed") as client:
        streams = [client.generate(sys.argv[2], "x", max_tokens=100_000) for _ in range(3)]
        pieces = iter(streams[0])
        next(pieces)
        print("begun", flush=True)
        threading.Event().wait()
"""


@contextmanager
def running(code: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A client in a process of its own that has said "begun"."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "kill"])
def test_the_work_of_a_killed_client_ends_within_two_seconds_also_what_waits(
    daemon: RunningDaemon, number: signal.Signals
) -> None:
    with daemon.client() as watcher, running(CLIENT, daemon.endpoint, MODEL) as doomed:
        wait_for_instance(watcher, lambda instance: instance.get("leases") == 1 and instance.get("queued") == 2)
        (instance,) = watcher.instances()
        assert (instance.leases, instance.queued) == (1, 2)
        assert [(asker.name, asker.pid, asker.running, asker.queued) for asker in instance.askers] == [
            ("doomed", doomed.pid if sys.platform == "linux" else None, 1, 2)
        ]
        killed_at = time.monotonic()
        doomed.send_signal(number)
        wait_for_instance(
            watcher, lambda instance: not (instance.get("leases") or instance.get("queued") or instance.get("askers"))
        )
        assert time.monotonic() - killed_at < WITHIN_SECONDS
        assert watcher.generate(MODEL, "x", max_tokens=1).result().text
        cancelled = [record for record in watcher.why() if record.kind == "event RequestCancelled"]
        assert len(cancelled) == 3


def test_a_client_that_vanishes_after_its_bye_or_its_cancel_costs_nothing_twice(daemon: RunningDaemon) -> None:
    with daemon.client() as watcher:
        with WireClient(daemon.endpoint) as client:
            client.hello()
            request_id = client.generate(MODEL, max_tokens=100_000)
            while (message := client.next()).TYPE != "chunk":
                assert not isinstance(message, Error)
            for _ in range(2):
                client.send(Cancel(id=request_id))
        wait_for_instance(watcher, lambda instance: not instance.get("leases"))
        assert watcher.generate(MODEL, "x", max_tokens=1).result().text


def test_a_client_that_is_stopped_for_a_while_keeps_its_work(daemon: RunningDaemon) -> None:
    """Ctrl-Z is no end."""
    code = """
        import enclave, sys
        with enclave.Client(endpoint=sys.argv[1], start=False) as client:
            stream = client.generate("fake:slow?tokens_per_second=50", "x", temperature=0, max_tokens=100)
            print("begun", flush=True)
            print("".join(chunk.text for chunk in stream), flush=True)
    """
    with daemon.client() as watcher, running(code, daemon.endpoint) as stopped:
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 1)
        stopped.send_signal(signal.SIGSTOP)
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 0)
        stopped.send_signal(signal.SIGCONT)
        assert stopped.stdout is not None
        assert len(stopped.stdout.readline().strip()) >= 99
        assert stopped.wait(60) == 0
