"""Who is measured: Enclave's daemon and llama-server, behind one small interface that counts tokens as a client sees
them, and the bare loops, which count by themselves."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import enclave
from benchmarks.homes import endpoint_of, fresh_home
from benchmarks.llama_server import llama_server
from enclave.discovery import start_daemon
from enclave.paths import places

SEQUENCES = 16
CONTEXT = 4608
"""Of each sequence: the longest prompt, 4,000 tokens, and an answer."""
THREADS = 2


class Contestant(ABC):
    """A server with the model loaded, and a client to it."""

    name: str

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    def stream(self, prompt: Sequence[int], tokens: int) -> AsyncIterator[int]:
        """Answers greedily, never ending before so many tokens: how many came, each time that some did."""

    @abstractmethod
    async def close(self) -> None: ...


class Enclave(Contestant):
    """A daemon in a home of its own, and its Python client."""

    name = "enclave"

    def __init__(self, model: Path) -> None:
        self._model = str(model)
        self._home: AbstractContextManager[dict[str, str]] = fresh_home()
        self._client: enclave.AsyncClient | None = None

    async def start(self) -> None:
        environment = self._home.__enter__()
        await asyncio.to_thread(start_daemon, places(environment), environment)
        self._client = enclave.AsyncClient(endpoint=endpoint_of(environment), start=False, priority="normal")
        await self._client.__aenter__()
        await self._client.load(
            self._model, context=CONTEXT, sequences=SEQUENCES, threads=THREADS, kv_type="f16", flash_attention=True
        )

    async def stream(self, prompt: Sequence[int], tokens: int) -> AsyncIterator[int]:
        assert self._client is not None
        answer = self._client.generate(
            self._model, prompt, temperature=0, max_tokens=tokens, ignore_eos=True, context=CONTEXT
        )
        async for chunk in answer:
            yield len(chunk.tokens)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        await asyncio.to_thread(self._home.__exit__, None, None, None)


class LlamaServer(Contestant):
    """llama-server, and a client that reads its event stream."""

    def __init__(self, model: Path, *, unified: bool) -> None:
        self.name = f"llama-server {'-kvu' if unified else '-no-kvu'}"
        self._unified = unified
        self._model = model
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process = await asyncio.create_subprocess_exec(
            str(llama_server()), "-m", str(self._model), "--host", "127.0.0.1", "--port", str(self._port),
            "-t", str(THREADS), "-tb", str(THREADS), "-c", str(CONTEXT * SEQUENCES), "-np", str(SEQUENCES),
            "-kvu" if self._unified else "-no-kvu", "-b", "2048", "-ub", "512", "-fa", "on", "--cache-ram", "0",
            "--no-warmup", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        said = b""
        async for line in self._process.stderr:
            said = (said + line)[-2000:]
            if b"listening on" in line:
                break
        else:
            raise RuntimeError(f"llama-server did not start: {said.decode(errors='replace')}")
        self._drain = asyncio.create_task(_read_away(self._process.stderr))

    async def stream(self, prompt: Sequence[int], tokens: int) -> AsyncIterator[int]:
        body = json.dumps(
            {
                "prompt": list(prompt), "n_predict": tokens, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
                "ignore_eos": True, "cache_prompt": True, "stream": True,
            }
        ).encode()  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        try:
            writer.write(
                b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            async for line in reader:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if event.get("stop"):
                        return
                    yield len(event.get("tokens") or [0])
                elif b'"error"' in line:
                    raise RuntimeError(line.decode(errors="replace"))
        finally:
            writer.close()

    async def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()
            self._drain.cancel()


async def _read_away(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass


class Loop:
    """A child that runs bare_loop.py or worker_loop.py; see there."""

    def __init__(self, model: Path, kind: str) -> None:
        """`kind`: `worker`, or the cache of a bare loop, `split` or `unified`."""
        self.name = "worker's loop" if kind == "worker" else f"bare loop, {kind}"
        module = "worker_loop" if kind == "worker" else "bare_loop"
        cache = [] if kind == "worker" else [kind]
        arguments = [str(model), *cache, str(SEQUENCES), str(CONTEXT), str(THREADS)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, kind: str, amount: int) -> float:
        """`decode`: tokens a second of so many streams; `prompt`: seconds to the first token of so many."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({kind: amount}) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


async def first_token_seconds(contestant: Contestant, prompt: Sequence[int]) -> float:
    """From the asking to the first token at the client."""
    began = time.perf_counter()
    async for _ in contestant.stream(prompt, 1):
        return time.perf_counter() - began
    raise RuntimeError(f"{contestant.name} gave no token")
