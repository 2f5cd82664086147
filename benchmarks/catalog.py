"""The catalog of ten thousand models: how long others wait while it grows, a page of it, and a start with it.

Ten thousand small GGUF files are put into a watched folder at once, beside a client that asks the daemon for its health
again and again, until a subscriber has heard of them all.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import struct
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import enclave
from benchmarks.homes import end_daemon, endpoint_of, fresh_home
from enclave import calls
from enclave.discovery import start_daemon
from enclave.paths import places

MANY = 10_000
FEW = 10
ASK_EVERY_SECONDS = 0.002


def run(rounds: int) -> None:
    """Prints how long others wait while the files come, and the median and spread of the rest."""
    figures: dict[str, list[float]] = {}
    with fresh_home() as environment:
        folder = _folder_of(environment)
        _write_models(folder, FEW)
        with _client(environment) as client:
            _until_listed(client, FEW)
        end_daemon(environment)
        _starts(f"start with {FEW} models", environment, figures, rounds)
        with _client(environment) as client:
            seconds, waits = _grow(client, environment, folder)
            print(
                f"{MANY:,} files put into a watched folder: all told after {seconds:.1f} s; meanwhile, the round trips"
            )
            print(f"of another client, ms: median {_ms(waits, 0.5)}, p99 {_ms(waits, 0.99)}, most {_ms(waits, 1)}")
            _pages(client, figures, max(rounds, 20))
        end_daemon(environment)
        _starts(f"start with {MANY:,} models", environment, figures, rounds)
    print("seconds: median (least to most)")
    for name, found in figures.items():
        print(f"  {name:<32} {statistics.median(found):.4f} ({min(found):.4f} to {max(found):.4f})")


def _client(environment: Mapping[str, str]) -> enclave.Client:
    endpoint = start_daemon(places(environment), environment).address
    return enclave.Client(endpoint=endpoint, start=False)


def _folder_of(environment: Mapping[str, str]) -> Path:
    folder = Path(environment["ENCLAVE_HOME"]) / "many"
    folder.mkdir()
    config = places(environment).config_file
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f'[plugins.folder]\nfolders = ["{folder}"]\n')
    return folder


def _write_models(folder: Path, count: int) -> None:
    for number in range(count):
        pairs = {"general.architecture": "llama", "general.name": f"model {number}"}
        raw = b"".join(_text(key) + struct.pack("<I", 8) + _text(value) for key, value in pairs.items())
        (folder / f"{number:05}.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + raw)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _until_listed(client: enclave.Client, count: int) -> None:
    listed: set[str] = set()
    with client.events("models") as events:
        for event in events:
            listed |= {name for name in (event.key, *(event.data or {})) if name and name.startswith("folder:")}
            if len(listed) >= count:
                return


def _grow(client: enclave.Client, environment: Mapping[str, str], folder: Path) -> tuple[float, list[float]]:
    """Seconds until all files are told, and those that each round trip of another client took meanwhile."""
    # A process of its own: in this one, the writing would hold up the asking.
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    asking = processes.Process(target=_ask, args=(there, endpoint_of(environment)))
    asking.start()
    here.recv()
    began = time.perf_counter()
    _write_models(folder, MANY)
    _until_listed(client, MANY)
    seconds = time.perf_counter() - began
    here.send("end")
    waits: list[float] = here.recv()
    asking.join()
    return seconds, waits


def _ask(pipe: Connection, endpoint: str) -> None:
    """Asks for the daemon's health until told to end, and tells how long each answer took."""
    waits: list[float] = []
    with enclave.Client(endpoint=endpoint, start=False) as client:
        client.health()
        pipe.send("ready")
        while not pipe.poll(ASK_EVERY_SECONDS):
            began = time.perf_counter()
            client.health()
            waits.append(time.perf_counter() - began)
    pipe.send(waits)


def _pages(client: enclave.Client, figures: dict[str, list[float]], rounds: int) -> None:
    for _ in range(rounds):
        began = time.perf_counter()
        client._ask(calls.models(""))  # pyright: ignore[reportPrivateUsage]
        figures.setdefault(f"first page ({calls.MODELS_A_PAGE} of {MANY:,})", []).append(time.perf_counter() - began)


def _starts(name: str, environment: Mapping[str, str], figures: dict[str, list[float]], rounds: int) -> None:
    for _ in range(rounds):
        began = time.perf_counter()
        start_daemon(places(environment), environment)
        figures.setdefault(name, []).append(time.perf_counter() - began)
        end_daemon(environment)


def _ms(seconds: list[float], share: float) -> str:
    ordered = sorted(seconds)
    return f"{ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000:.1f}"
