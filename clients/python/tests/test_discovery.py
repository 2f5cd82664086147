"""Finding a daemon and starting one; the daemons here are small scripts that keep their side of the agreement."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enclave.discovery import find_daemon, running, start_daemon
from enclave.exceptions import BackingOffError, DaemonUnavailableError, EnclaveError
from enclave.paths import DaemonState, Places, private_folder, read_state, write_state

PRELUDE = f"""#!{sys.executable}
import json, os, sys
ready = int(sys.argv[sys.argv.index("--ready-fd") + 1])
home = os.environ["ENCLAVE_HOME"]
"""

LISTENING = """
import signal, socket
path = os.path.join(home, "s")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
with open(os.path.join(home, "starts"), "a") as file:
    file.write(f"{os.getpid()} {os.getcwd()} {os.getsid(0)}\\n")
state = {"pid": os.getpid(), "version": "1", "protocol": 1, "endpoint": "ipc://" + path, "started": 1.0}
with open(os.path.join(home, "run", "daemon.json"), "w") as file:
    json.dump(state, file)
os.write(ready, json.dumps({"endpoint": "ipc://" + path, "pid": os.getpid()}).encode() + b"\\n")
os.close(ready)
signal.pause()
"""


@pytest.fixture
def program(where: Places, tmp_path: Path) -> Callable[[str], Path]:
    where.home.mkdir(mode=0o700)

    def write(body: str) -> Path:
        path = tmp_path / "my enclaved"
        path.write_text(PRELUDE + body)
        path.chmod(0o700)
        return path

    return write


@pytest.fixture
def environment(where: Places) -> dict[str, str]:
    return {"ENCLAVE_HOME": str(where.home), "PATH": os.defpath}


@pytest.fixture
def listening(where: Places, program: Callable[[str], Path], environment: dict[str, str]) -> Generator[dict[str, str]]:
    environment["ENCLAVE_DAEMON"] = str(program(LISTENING))
    yield environment
    for line in starts(where):
        os.kill(int(line.split()[0]), signal.SIGKILL)


def starts(where: Places) -> list[str]:
    path = where.home / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_a_started_daemon_is_detached_and_found_afterwards(where: Places, listening: dict[str, str]) -> None:
    endpoint = start_daemon(where, listening, 30)
    assert running(where) == endpoint
    ((pid, folder, session),) = (line.split() for line in starts(where))
    assert (int(pid), folder, session) == (endpoint.pid, "/", pid)


def test_many_that_start_at_once_start_one(where: Places, listening: dict[str, str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        endpoints = [future.result() for future in [pool.submit(start_daemon, where, listening, 60) for _ in range(4)]]
    assert len(set(endpoints)) == 1
    assert len(starts(where)) == 1


def test_the_winners_endpoint_counts_when_another_daemon_was_faster(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    body = 'os.write(ready, b\'{"endpoint": "ipc:///other", "pid": 5}\\n\'); sys.exit(3)'
    endpoint = start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program(body))}, 30)
    assert (endpoint.address, endpoint.pid) == ("ipc:///other", 5)


def test_an_error_that_the_daemon_reports_is_raised_as_such(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    error = {"code": "backing_off", "message": "not now", "hint": "later"}
    body = f"os.write(ready, {json.dumps({'error': error}).encode()!r} + b'\\n')"
    with pytest.raises(BackingOffError) as caught:
        start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program(body))}, 30)
    assert (caught.value.message, caught.value.hint) == ("not now", "later")


def test_the_log_of_a_daemon_that_did_not_start_is_told_without_its_own_words(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    error = {"code": "bad_config", "message": "no such setting", "hint": "look"}
    body = (
        "print('a remark\\nERROR no such setting\\nhint: look', file=sys.stderr)\n"
        f"os.write(ready, {json.dumps({'error': error}).encode()!r} + b'\\n')"
    )
    with pytest.raises(EnclaveError) as caught:
        start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program(body))}, 30)
    assert (caught.value.code, caught.value.detail) == ("bad_config", "a remark")


def test_a_daemon_that_dies_leaves_the_tail_of_its_log(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    where.logs.mkdir(parents=True)
    where.log_file.write_text("an older story\n")
    with pytest.raises(DaemonUnavailableError, match="libfoo is missing") as caught:
        start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program("sys.exit('libfoo is missing')"))}, 30)
    assert caught.value.detail == "libfoo is missing\n"


def test_a_new_log_is_private(where: Places, program: Callable[[str], Path], environment: dict[str, str]) -> None:
    with pytest.raises(DaemonUnavailableError):
        start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program(""))}, 30)
    assert stat.S_IMODE(where.log_file.stat().st_mode) == 0o600


def test_a_slow_daemon_runs_into_the_timeout_and_is_named(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    chosen = environment | {"ENCLAVE_DAEMON": str(program("import signal; signal.pause()"))}
    with pytest.raises(DaemonUnavailableError, match=r"pid \d+") as caught:
        start_daemon(where, chosen, 0.2)
    os.kill(int(caught.value.message.partition("pid ")[2].partition(")")[0]), signal.SIGKILL)


def test_nonsense_on_the_ready_pipe_is_not_believed(
    where: Places, program: Callable[[str], Path], environment: dict[str, str]
) -> None:
    body = "os.write(ready, b'[' * 5000 + b'\\n')"
    with pytest.raises(DaemonUnavailableError):
        start_daemon(where, environment | {"ENCLAVE_DAEMON": str(program(body))}, 30)


def test_a_run_folder_that_others_may_enter_is_an_error_with_the_command(
    where: Places, environment: dict[str, str]
) -> None:
    where.run.mkdir(parents=True)
    where.run.chmod(0o755)
    with pytest.raises(DaemonUnavailableError) as caught:
        start_daemon(where, environment, 1)
    assert caught.value.hint.startswith("chmod 700")


# --- running ---


def state(where: Places, endpoint: str, executable: str | None = None) -> None:
    private_folder(where.run)
    write_state(where, DaemonState(1, "1", 1, endpoint, 1.0, executable))


def test_a_state_file_whose_socket_is_gone_or_dead_is_stale(where: Places, tmp_path: Path) -> None:
    assert running(where) is None
    state(where, f"ipc://{tmp_path}/gone")
    assert running(where) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    state(where, f"ipc://{tmp_path}/dead")
    assert running(where) is None


@pytest.mark.parametrize("endpoint", ["", "tcp://", "tcp://127.0.0.1:99999999", "smoke://signal", "ipc://" + "x" * 500])
def test_a_senseless_endpoint_is_stale(where: Places, endpoint: str) -> None:
    state(where, endpoint)
    assert running(where) is None


def test_a_tcp_endpoint_is_tried_as_well(where: Places) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        state(where, f"tcp://127.0.0.1:{server.getsockname()[1]}")
        assert running(where) is not None
    assert running(where) is None


# --- find_daemon ---


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    return path


def test_the_program_is_looked_for_in_the_documented_order(
    where: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    beside = executable(tmp_path / "venv" / "enclaved")
    assert find_daemon(where, {"PATH": ""}) == str(beside)
    on_path = executable(tmp_path / "bin" / "enclaved")
    environment = {"PATH": str(on_path.parent)}
    assert find_daemon(where, environment) == str(on_path)
    last = executable(tmp_path / "last")
    state(where, "ipc:///x", str(last))
    assert find_daemon(where, environment) == str(last)
    chosen = executable(tmp_path / "chosen")
    assert find_daemon(where, environment | {"ENCLAVE_DAEMON": str(chosen)}) == str(chosen)
    last.unlink()
    assert read_state(where) is not None
    assert find_daemon(where, environment) == str(on_path)


def test_a_chosen_program_that_is_none_is_an_error_not_passed_over(where: Places, tmp_path: Path) -> None:
    on_path = executable(tmp_path / "bin" / "enclaved")
    with pytest.raises(DaemonUnavailableError, match="ENCLAVE_DAEMON"):
        find_daemon(where, {"PATH": str(on_path.parent), "ENCLAVE_DAEMON": str(tmp_path / "none")})


def test_no_program_at_all_is_an_error_that_says_what_to_install(
    where: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DaemonUnavailableError) as caught:
        find_daemon(where, {"PATH": ""})
    assert "enclaved" in caught.value.hint
