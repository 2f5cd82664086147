"""Processes that die: workers, the inspector, the daemon itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import enclave
from tests.conftest import StartDaemon
from tests.running import RunningDaemon, wait_ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent on Linux")

WITHIN_SECONDS = 1.0


def test_a_worker_killed_in_mid_stream_fails_its_requests_within_a_second(daemon: RunningDaemon) -> None:
    model = "fake:slow?tokens_per_second=50"
    with daemon.client() as client:
        streams = [client.generate(model, "x", max_tokens=100_000) for _ in range(2)]
        iterators = [iter(stream) for stream in streams]
        for iterator in iterators:
            next(iterator)
        (instance,) = client.instances()
        assert instance.pid is not None
        killed_at = time.monotonic()
        os.kill(instance.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(enclave.EnclaveError) as error:
                stream.result()
            assert error.value.code == "worker_died"
            assert "SIGKILL" in (error.value.detail or "")
        assert time.monotonic() - killed_at < WITHIN_SECONDS
        again = client.generate(model, "x", max_tokens=2).result()
        assert again.text
        assert again.receipt.instance != instance.id


def test_children_end_within_a_second_of_a_killed_daemon(daemon: RunningDaemon, tmp_path: Path) -> None:
    with daemon.client() as client:
        client.load("fake:a")
        stream = client.generate("fake:stuck?never_answer=true", "x")
        client.load("fake:b")
        (tmp_path / "no.gguf").write_bytes(b"")
        with pytest.raises(enclave.EnclaveError):
            client.show(str(tmp_path / "no.gguf"))
        children = [child.pid for child in daemon.note_children()]
        assert len(children) >= 3
        daemon.kill()
        assert wait_ended(children, WITHIN_SECONDS) == []
        with pytest.raises(enclave.EnclaveError) as error:
            stream.result()
        assert error.value.code == "connection_lost"


def test_a_model_that_kills_its_worker_again_and_again_is_backed_off(daemon: RunningDaemon) -> None:
    errors: list[enclave.EnclaveError] = []
    with daemon.client() as client:
        for _ in range(3):
            with pytest.raises(enclave.EnclaveError) as error:
                client.generate("fake:bad?crash_at_token=1", "x").result()
            errors.append(error.value)
        assert [error.code for error in errors] == ["worker_died", "worker_died", "backing_off"]
        assert errors[-1].retryable
        assert (errors[-1].retry_after or 0) > 0
        assert client.generate("fake:good", "x", max_tokens=1).result().text


def test_a_worker_that_dies_while_it_loads_says_so(daemon: RunningDaemon) -> None:
    with daemon.client() as client, pytest.raises(enclave.EnclaveError) as error:
        client.generate("fake:bad?crash_at_load=true", "x").result()
    assert error.value.code == "load_failed"
    assert not error.value.retryable
    assert "SIGKILL" in (error.value.detail or "")


def test_a_request_that_never_answers_can_be_cancelled(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        stream = client.generate("fake:stuck?never_answer=true", "x")
        other = client.generate("fake:other", "x", max_tokens=1)
        assert other.result().text
        stream.cancel()
        with pytest.raises(enclave.EnclaveError) as error:
            stream.result()
        assert error.value.code == "cancelled"
        assert [i.leases for i in client.instances() if i.model.startswith("fake:stuck")] == [0]


def test_a_deaf_worker_is_ended_when_it_does_not_cancel(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_WORKERS_CANCEL_SECONDS_MAX": "0.2"})
    with daemon.client() as client:
        stream = client.generate("fake:deaf?never_answer=true&deaf=true", "x", events=True)
        iterator = iter(stream)
        while getattr(next(iterator), "stage", "prompt") != "prompt":
            continue
        stream.cancel()
        with pytest.raises(enclave.EnclaveError) as error:
            stream.result()
        assert error.value.code == "cancelled"
        assert client.generate("fake:other", "x", max_tokens=1).result().text


def test_a_client_that_vanishes_gives_its_lease_back(daemon: RunningDaemon) -> None:
    model = "fake:slow?tokens_per_second=50&sequences=1"
    with daemon.client() as gone:
        stream = gone.generate(model, "x", max_tokens=100_000)
        iterator = iter(stream)
        next(iterator)
    with daemon.client() as client:
        # There is one sequence: this can only run when the other one has ended.
        assert client.generate(model, "x", max_tokens=1).result().text
