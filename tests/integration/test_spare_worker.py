"""A spare worker waits with its libraries imported: once a model has been used, also after a restart, or never."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartDaemon
from tests.running import RunningDaemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def workers(daemon: RunningDaemon) -> set[int]:
    """Pids of the worker processes, by the kind on their command line."""
    children = psutil.Process(daemon.process.pid).children()
    return {child.pid for child in children if '"kind": "worker"' in " ".join(child.cmdline())}


def test_a_fresh_daemon_has_no_spare(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        client.info()
        assert workers(daemon) == set()


def test_after_a_model_was_used_the_next_load_takes_the_spare(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        client.load("fake:a")
        (first,) = client.instances()
        (spare,) = workers(daemon) - {first.pid}
        client.load("fake:b")
        assert [i.pid for i in client.instances() if i.model == "fake:b"] == [spare]


def test_a_restarted_daemon_remembers(start_daemon: StartDaemon, home: Path) -> None:
    first = start_daemon()
    with first.client() as client:
        client.load("fake:a")
    first.close()
    second = start_daemon()
    with second.client() as client:
        client.info()
        (spare,) = workers(second)
        client.load("fake:a")
        assert client.instances()[0].pid == spare


def test_never_means_never(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_WORKERS_SPARE": "never"})
    with daemon.client() as client:
        client.load("fake:a")
        assert workers(daemon) == {client.instances()[0].pid}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_that_died_or_hangs_is_replaced_without_a_word(daemon: RunningDaemon, signal_number: int) -> None:
    with daemon.client() as client:
        client.load("fake:a")
        (spare,) = workers(daemon) - {client.instances()[0].pid}
        os.kill(spare, signal_number)
        assert client.generate("fake:b", "x", max_tokens=1).result().text
