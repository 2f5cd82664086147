"""How long `enclave run` takes to its first token: daemon cold, daemon warm, model loaded.

From the start of the command to the first byte on its stdout. Where the time goes is told by the Python start of the
command line alone (`enclave --version`) and by a bare interpreter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import enclave
from benchmarks.homes import end_daemon, endpoint_of, fresh_home
from enclave.discovery import start_daemon
from enclave.paths import places

ENCLAVE = str(Path(sys.executable).with_name("enclave"))
RUN = [ENCLAVE, "run", "tiny", "--raw", "--temperature", "0", "--max-tokens", "1", "Once upon a time"]


_PENDING: list[subprocess.Popen[bytes]] = []
"""What `first_byte` left running."""


def run(rounds: int) -> None:
    """Prints the median and the spread of each."""
    print(f"time to first token, tiny, {rounds} rounds, seconds: median (least to most)")
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        measure(figures)
    for name, seconds in figures.items():
        print(f"  {name:<28} {statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})")


def measure(figures: dict[str, list[float]]) -> None:
    """One round of all."""

    def add(name: str, seconds: float) -> None:
        figures.setdefault(name, []).append(seconds)

    with fresh_home() as environment:
        add("bare interpreter", timed(lambda: first_byte([sys.executable, "-c", "print(1)"], environment)))
        add("enclave --version", timed(lambda: first_byte([ENCLAVE, "--version"], environment)))
        add("enclaved ready", timed(lambda: start_daemon(places(environment), environment)))
        end_daemon(environment)
        add("fresh home, daemon cold", timed(lambda: first_byte(RUN, environment)))
        add("model loaded", timed(lambda: first_byte(RUN, environment)))
        with enclave.Client(endpoint=endpoint_of(environment), start=False) as client:
            add("loaded, Python client", timed(lambda: next(iter(client.generate("tiny", "x", max_tokens=1)))))
            client.unload("tiny")
        add("daemon warm, spare worker", timed(lambda: first_byte(RUN, environment)))
        end_daemon(environment)
        add("used home, daemon cold", timed(lambda: first_byte(RUN, environment)))


def first_byte(command: list[str], environment: dict[str, str]) -> None:
    """Runs a command until its first byte of output, then to its end without being timed."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.read(1):
        raise SystemExit(f"{' '.join(command)} printed nothing")
    _PENDING.append(process)


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes; what it left running is waited for afterwards."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    while _PENDING:
        process = _PENDING.pop()
        assert process.stdout is not None
        process.stdout.read()
        process.wait()
    return seconds
