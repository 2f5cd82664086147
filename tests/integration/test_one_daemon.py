"""One daemon a home: found, started on demand, started once, ended cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import enclave
from enclave.paths import places
from tests.conftest import StartDaemon
from tests.running import (
    BIN,
    END_SECONDS,
    RunningDaemon,
    daemon_environment,
    end_daemon_of,
    read_line,
    run_enclave,
)


def counted_one(home: Path) -> bool:
    """Whether the command line gets an answer from a daemon of this home."""
    told = run_enclave("run", "fake:a", "x", "--temperature", "0", "--max-tokens", "1", home=home)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip() == "1"


def test_a_second_daemon_says_so_and_exits_3(daemon: RunningDaemon) -> None:
    second = subprocess.run(
        [BIN / "enclaved"], env=daemon.environment, capture_output=True, text=True, timeout=END_SECONDS, check=False
    )
    assert second.returncode == 3
    assert f"already running (pid {daemon.process.pid}" in second.stderr
    served = run_enclave("serve", home=daemon.home)
    assert served.returncode == 3


def test_a_client_starts_the_daemon_when_none_runs(home: Path) -> None:
    told = run_enclave("run", "fake:a", "x", "--max-tokens", "3", "--temperature", "0", home=home)
    assert (told.returncode, told.stdout.strip()) == (0, "1 2")
    end_daemon_of(home)


def test_clients_that_come_at_once_on_a_cold_machine_get_one_daemon(home: Path) -> None:
    def ask(number: int) -> str:
        return run_enclave("run", "fake:a", str(number), "--max-tokens", "1", "--json", home=home).stdout

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert all(json.loads(answer)["text"] for answer in answers)
    log = places({"ENCLAVE_HOME": str(home)}).log_file.read_text()
    assert log.count(" serves ") == 1
    end_daemon_of(home)


def test_daemons_that_start_at_once_are_one(home: Path) -> None:
    def serve(_: int) -> tuple[subprocess.Popen[bytes], str]:
        ready, ready_child = os.pipe()
        process = subprocess.Popen(
            [BIN / "enclaved", "--ready-fd", str(ready_child)],
            env=daemon_environment(home),
            pass_fds=(ready_child,),
            stderr=subprocess.DEVNULL,
        )
        os.close(ready_child)
        try:
            return process, read_line(ready, END_SECONDS)
        finally:
            os.close(ready)

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(serve, range(4)))
    endpoints = {json.loads(line)["endpoint"] for _, line in started}
    assert len(endpoints) == 1
    losers = [process for process, line in started if json.loads(line)["pid"] != process.pid]
    assert [process.wait(END_SECONDS) for process in losers] == [3, 3, 3]
    (winner,) = [process for process, _ in started if process not in losers]
    winner.terminate()
    assert winner.wait(END_SECONDS) == 0


def test_a_home_with_a_long_path_works(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 40)
    home = Path(str(home)[:150]) if len(str(home)) > 150 else home
    home.mkdir(mode=0o700, parents=True)
    assert len(os.fsencode(home)) >= 150
    daemon = RunningDaemon(home)
    try:
        assert counted_one(home)
    finally:
        daemon.close()


def test_what_a_killed_daemon_left_is_no_obstacle(daemon: RunningDaemon, home: Path) -> None:
    daemon.kill()
    state = places(daemon.environment).state_file
    assert state.exists()
    assert counted_one(home)
    end_daemon_of(home)


def test_garbage_in_the_state_file_is_no_obstacle(home: Path) -> None:
    where = places({"ENCLAVE_HOME": str(home)})
    where.run.mkdir(mode=0o700)
    where.state_file.write_bytes(b"\xff{")
    assert counted_one(home)
    end_daemon_of(home)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_ending_tells_running_requests_and_leaves_nothing(daemon: RunningDaemon, signal_number: int) -> None:
    with daemon.client() as client:
        running = client.generate("fake:slow?tokens_per_second=20", "x", max_tokens=1000)
        iterator = iter(running)
        next(iterator)
        waiting = client.generate("fake:late?load_seconds=600", "x")
        daemon.note_children()
        # To the whole group, as a terminal sends Ctrl-C.
        os.killpg(daemon.process.pid, signal_number)
        for stream in (running, waiting):
            with pytest.raises(enclave.EnclaveError) as error:
                stream.result()
            assert error.value.code == "shutting_down"
    assert daemon.process.wait(END_SECONDS) == 0
    assert not places(daemon.environment).state_file.exists()
    assert not places(daemon.environment).socket_file.exists()


def test_a_client_can_end_the_daemon(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        client.shutdown()
    assert daemon.process.wait(END_SECONDS) == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("offlin = true", ["offlin", "Did you mean offline?"]),
        ("[workers]\nspar = 'auto'", ["workers.spar", "Did you mean spare?"]),
        ("[workers]\nspare = 'perhaps'", ["workers.spare", "'never'"]),
        ("[plugins.foldr]\nfolders = []", ["foldr", "Did you mean folder?"]),
        ("[memory]\nlimit_bytes = 'much'", ["memory.limit_bytes", "whole number"]),
        ("[memory", ["not valid TOML"]),
        ("[instance]", ["Did you mean instances?"]),
        ("[plugins.folder]\nfolders = '/tmp'", ["a list, such as"]),
    ],
)
def test_a_wrong_configuration_is_explained(home: Path, config: str, words: list[str]) -> None:
    (home / "config").mkdir()
    (home / "config" / "enclave.toml").write_text(config)
    told = run_enclave("list", home=home)
    assert told.returncode != 0
    assert "Traceback" not in told.stderr
    for word in words:
        assert word in told.stderr


def test_a_data_folder_that_others_may_read_is_fine_and_one_they_may_change_is_not(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data").chmod(0o755)
    assert counted_one(home)
    end_daemon_of(home)
    (home / "data").chmod(0o777)
    told = run_enclave("list", home=home)
    assert told.returncode != 0
    assert f"chmod go-w '{home}/data'" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_home_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = run_enclave("list", home=tmp_path / "file")
    assert told.returncode != 0
    assert "is a file: ENCLAVE_HOME must name a folder" in told.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS makes no such names")
def test_a_home_whose_name_is_no_utf_8_is_explained(tmp_path: Path) -> None:
    told = run_enclave("list", home=tmp_path / os.fsdecode(b"bad\xff"))
    assert told.returncode != 0
    assert "is not UTF-8" in told.stderr
    assert "Traceback" not in told.stderr


def test_no_folder_of_a_socket_is_left_behind(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 40)
    home.mkdir(mode=0o700)
    # A user's home too long for a socket as well: the socket goes into a folder made for it alone.
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": ""}
    first = RunningDaemon(home, environment)
    socket_folder = Path(first.endpoint.removeprefix("ipc://")).parent
    assert socket_folder != home / "run"
    first.kill()
    assert socket_folder.exists()
    second = RunningDaemon(home, environment)
    assert not socket_folder.exists()
    socket_folder = Path(second.endpoint.removeprefix("ipc://")).parent
    second.close()
    assert not socket_folder.exists()


def test_a_setting_can_be_overridden_by_the_environment(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_INSTANCES_CONTEXT": "64"}, config="[instances]\ncontext = 128\n")
    with daemon.client() as client:
        client.load("fake:a")
        assert client.instances()[0].context == 64
