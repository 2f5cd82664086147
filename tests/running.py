"""A real daemon in a home of its own, for tests; leaves no process behind, and says so when one is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

import enclave
from enclave.paths import places

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
START_SECONDS = 30.0
END_SECONDS = 30.0


class RunningDaemon:
    """`enclaved` in the foreground, started by this object and ended by `close`."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None, config: str = "") -> None:
        self.home = home
        self.environment = daemon_environment(home, environment)
        if config:
            (home / "config").mkdir(parents=True, exist_ok=True)
            (home / "config" / "enclave.toml").write_text(config)
        self.process: subprocess.Popen[bytes]
        self.endpoint = ""
        self.children: list[psutil.Process] = []
        self.start()

    def start(self) -> None:
        """Starts it and waits for its own word that it is ready."""
        ready, ready_child = os.pipe()
        with (self.home / "enclaved.stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "enclaved", "--ready-fd", str(ready_child)],
                env=self.environment,
                pass_fds=(ready_child,),
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=0,
            )
        os.close(ready_child)
        try:
            report = json.loads(read_line(ready, START_SECONDS) or "{}")
        finally:
            os.close(ready)
        assert "endpoint" in report, f"the daemon did not start: {report} {self.log()[-2000:]}"
        self.endpoint = report["endpoint"]

    def client(self, **options: object) -> enclave.Client:
        """A client of this daemon, that starts no other."""
        return enclave.Client(endpoint=self.endpoint, start=False, **options)  # type: ignore[arg-type]

    def log(self) -> str:
        return (self.home / "enclaved.stderr").read_text()

    def note_children(self) -> list[psutil.Process]:
        """The child processes that there are now; `close` demands that they end."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.children += children
        return children

    def kill(self) -> None:
        """Ends it as `kill -9` does."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    def terminate(self) -> int:
        """Ends it as a service manager does; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def close(self) -> None:
        """Ends it if it runs still, and demands that it and its children are gone."""
        if self.process.poll() is None:
            self.note_children()
            code = self.terminate()
            assert code == 0, f"the daemon ended with {code}: {self.log()[-2000:]}"
        left = wait_ended([child.pid for child in self.children], END_SECONDS)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"children were left behind: {left}"


def daemon_environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with a home of its own, and one core: tests run beside each other."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    return own | {"ENCLAVE_HOME": str(home), "ENCLAVE_CPU_CORES_MAX": "1"} | dict(more or {})


def wait_ended(pids: list[int], seconds: float) -> list[int]:
    """Waits until these processes have ended, reaped or not; gives those that have not within `seconds`."""
    descriptors: dict[int, int] = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptors[os.pidfd_open(pid)] = pid
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while descriptors and (ended := poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            os.close(descriptor)
            del descriptors[descriptor]
    left = list(descriptors.values())
    for descriptor in descriptors:
        os.close(descriptor)
    return left


def read_line(descriptor: int, seconds: float) -> str:
    """The first line that comes from a pipe; empty at its end. Raises TimeoutError."""
    text = b""
    while not text.endswith(b"\n"):
        if not select.select([descriptor], [], [], seconds)[0]:
            raise TimeoutError(f"no line within {seconds} s")
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        text += piece
    return text.decode()


def run_enclave(
    *arguments: str, home: Path, environment: Mapping[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        [BIN / "enclave", *arguments],
        env=daemon_environment(home, environment),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def end_daemon_of(home: Path) -> None:
    """Ends a daemon that a client started, and waits for its process."""
    state = json.loads(places({"ENCLAVE_HOME": str(home)}).state_file.read_text())
    process = psutil.Process(state["pid"])
    family = [process.pid, *(child.pid for child in process.children(recursive=True))]
    process.send_signal(signal.SIGTERM)
    assert wait_ended(family, END_SECONDS) == []
