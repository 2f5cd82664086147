"""Connections that only sit there: the daemon raises its own limit of open files, and closes who says nothing."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.running import RunningDaemon, end_daemon_of, run_enclave

CONNECTIONS = 2000


def test_the_daemon_bears_more_idle_connections_than_its_first_limit_of_files(start_daemon: StartDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * CONNECTIONS:
        pytest.skip(f"this user may have {hard} files open, which is too few to try")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        daemon = start_daemon()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * CONNECTIONS), hard))
    with daemon.client() as client, ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(daemon.endpoint.removeprefix("ipc://"))
        assert client.generate("fake:a", "x", max_tokens=1).result().text
        with daemon.client() as late:
            assert late.generate("fake:a", "x", max_tokens=1).result().text


def test_who_does_not_speak_the_protocol_is_hung_up_on(daemon: RunningDaemon) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(30)
        silent.connect(daemon.endpoint.removeprefix("ipc://"))
        received = silent.recv(4096)
        while received:  # libzmq's own greeting comes first, then the end
            received = silent.recv(4096)
    with daemon.client() as client:
        assert client.info().pid


@pytest.mark.skipif(sys.platform == "win32", reason="locks files as Unix does")
def test_a_client_that_was_stopped_while_it_started_a_daemon_holds_nobody_up(home: Path) -> None:
    run = home / "run"
    run.mkdir(mode=0o700)
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(run / "starting.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        told = run_enclave("ps", home=home)
        assert told.returncode == 0, told.stderr
        holder.stdin.close()
    end_daemon_of(home)
