"""What the protocol costs: round trips and chunks through the daemon, each against bare ZeroMQ on asyncio.

Both are measured in turn, round by round, between the same processes: clients of their own, and a server of its own.
The bare ones send the same bytes in the same frames, with `zmq.asyncio` on both sides, and neither read nor count them.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import psutil
import zmq
import zmq.asyncio

import enclave
from benchmarks.homes import endpoint_of, fresh_home
from enclave.discovery import start_daemon
from enclave.paths import places
from enclave.protocol import Limits, write_body
from enclave.protocol.bodies import HealthResult, TextChunk
from enclave.protocol.messages import Chunk, Request, Result, to_frames

ROUND_TRIPS = 2000
STREAMS = 100
PROCESSES = 10
CHUNKS_EACH = 1000
"""Of each stream."""
MODEL = "fake:wire?context=4000000&sequences=256"

_SPAWN = multiprocessing.get_context("spawn")


def run(rounds: int) -> None:
    """Prints each figure of ours, the bare one, and their ratio round by round."""
    print(f"the wire, {rounds} rounds: median (least to most)")
    import_times(rounds)
    with fresh_home() as environment:
        environment["ENCLAVE_INSTANCES_SEQUENCES"] = str(STREAMS)
        start_daemon(places(environment), environment)
        endpoint = endpoint_of(environment)
        with enclave.Client(endpoint=endpoint, start=False) as client:
            client.generate(MODEL, "x", max_tokens=10, context=4_000_000).result()
            pid = client.info().pid
        round_trips(endpoint, rounds)
        streams(endpoint, pid, rounds)


def import_times(rounds: int) -> None:
    """What `import enclave; enclave.Client` adds to a bare interpreter, beside what ZeroMQ and MessagePack add."""

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    codes = {"client": "import enclave; enclave.Client", "zmq and msgpack": "import zmq, msgpack"}
    taken: dict[str, list[float]] = {name: [] for name in codes}
    seconds(codes["client"])
    for _ in range(max(rounds, 5)):
        bare = seconds("pass")
        for name, code in codes.items():
            taken[name].append((seconds(code) - bare) * 1000)
    for name, values in taken.items():
        tell(f"import of {name}, ms", values)


def round_trips(endpoint: str, rounds: int) -> None:
    """A request that the daemon answers itself, and the same bytes to and fro over bare sockets."""
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        ours = sorted(in_process(_ask, endpoint))
        bare = sorted(with_bare_server(lambda address: in_process(_echo, address)))
        for name, place in (("p50", 0.5), ("p99", 0.99)):
            mine, other = (values[int(len(values) * place)] * 1e6 for values in (ours, bare))
            add(figures, f"round trip {name}, µs", mine)
            add(figures, f"round trip {name}, bare, µs", other)
            add(figures, f"round trip {name}, ratio", mine / other)
    tell_all(figures)


def streams(endpoint: str, pid: int, rounds: int) -> None:
    """Streams of ten client processes at once, and as many messages of the same bytes over bare sockets."""
    figures: dict[str, list[float]] = {}
    daemon = psutil.Process(pid)
    count = STREAMS * CHUNKS_EACH
    for _ in range(rounds):
        before = cpu_seconds(daemon)
        ours = count / together(_stream, endpoint)
        add(figures, "daemon's CPU per 1,000 chunks, ms", (cpu_seconds(daemon) - before) / count * 1e6)
        bare = with_bare_server(lambda address: count / together(_receive, address))
        add(figures, "chunks/s, 100 streams", ours)
        add(figures, "chunks/s, bare", bare)
        add(figures, "chunks/s, ratio", ours / bare)
    tell_all(figures)


# --- the two kinds of client ---


def _ask(endpoint: str) -> list[float]:
    async def ask() -> list[float]:
        async with enclave.AsyncClient(endpoint=endpoint, start=False) as client:
            seconds: list[float] = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                await client.health()
                seconds.append(time.perf_counter() - began)
            return seconds[ROUND_TRIPS // 10 :]

    return asyncio.run(ask())


def _echo(address: str) -> list[float]:
    frames = to_frames(Request(id=1000, token=bytes(16), method="daemon.health"), Limits())

    async def ask() -> list[float]:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
            socket = cast(Any, dealer)
            socket.connect(address)
            seconds: list[float] = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                await socket.send_multipart(frames)
                await socket.recv_multipart()
                seconds.append(time.perf_counter() - began)
            return seconds[ROUND_TRIPS // 10 :]

    return asyncio.run(ask())


def _stream(endpoint: str, ready: Callable[[], None]) -> None:
    async def read(client: enclave.AsyncClient) -> None:
        stream = client.generate(MODEL, "x", max_tokens=CHUNKS_EACH, context=4_000_000, temperature=0, ignore_eos=True)
        count = 0
        async for _ in stream:
            count += 1
        assert count == CHUNKS_EACH

    async def read_all() -> None:
        async with enclave.AsyncClient(endpoint=endpoint, start=False) as client:
            await client.health()
            ready()
            await asyncio.gather(*(read(client) for _ in range(STREAMS // PROCESSES)))

    asyncio.run(read_all())


def _receive(address: str, ready: Callable[[], None]) -> None:
    async def receive() -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
            socket = cast(Any, dealer)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(address)
            await socket.send_multipart([b"hello"])
            await socket.recv_multipart()
            ready()
            await socket.send_multipart([b"go"])
            for _ in range(STREAMS // PROCESSES * CHUNKS_EACH):
                await socket.recv_multipart()

    asyncio.run(receive())


# --- the bare server ---


def _serve(address: str, ready: Any) -> None:
    answer = to_frames(Result(id=1000, body=write_body(HealthResult(status="ok", uptime_seconds=10.5))), Limits())
    body = write_body(TextChunk(text="1", tokens=(49,)))
    chunks = [to_frames(Chunk(id=number + 1, seq=500, body=body), Limits()) for number in range(STREAMS // PROCESSES)]

    async def serve() -> None:
        context = zmq.asyncio.Context()
        socket = cast(Any, context.socket(zmq.ROUTER))
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.bind(address)
        ready.send(None)
        waiting: list[bytes] = []
        while True:
            peer, *frames = await socket.recv_multipart()
            if frames == [b"go"]:
                waiting.append(peer)
                if len(waiting) == PROCESSES:
                    for _ in range(CHUNKS_EACH):
                        for each in waiting:
                            for chunk in chunks:
                                await socket.send_multipart([each, *chunk])
                    waiting.clear()
            else:
                await socket.send_multipart([peer, *answer])

    asyncio.run(serve())


def with_bare_server(work: Callable[[str], Any]) -> Any:
    """What `work` gives for the address of a bare server, which is ended afterwards."""
    with fresh_home() as environment:
        address = f"ipc://{environment['ENCLAVE_HOME']}/bare"
        ready, told = _SPAWN.Pipe(duplex=False)
        server = _SPAWN.Process(target=_serve, args=(address, told), daemon=True)
        server.start()
        ready.recv()
        try:
            return work(address)
        finally:
            server.kill()
            server.join()


# --- processes ---


def in_process(work: Callable[[str], Any], address: str) -> Any:
    """What `work` gives in a process of its own."""
    code = f"import json, benchmarks.wire as wire; print(json.dumps(wire.{work.__name__}({address!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def together(work: Callable[[str, Callable[[], None]], None], address: str) -> float:
    """Seconds from the moment that all client processes are connected until the last has read all of its streams."""
    pipes: list[Any] = []
    processes: list[Any] = []
    for _ in range(PROCESSES):
        mine, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_in_step, args=(work, address, theirs), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    began = time.perf_counter()
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return time.perf_counter() - began


def _in_step(work: Callable[[str, Callable[[], None]], None], address: str, pipe: Any) -> None:
    def ready() -> None:
        pipe.send(None)
        pipe.recv()

    work(address, ready)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# --- telling ---


def add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def tell_all(figures: Mapping[str, list[float]]) -> None:
    for name, values in figures.items():
        tell(name, values)


def tell(name: str, values: list[float]) -> None:
    digits = 2 if statistics.median(values) < 10 else 0
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    print(f"  {name:<36} {middle} ({low} to {high})")
