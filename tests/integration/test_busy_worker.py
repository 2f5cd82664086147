"""A worker in the middle of a long prompt of a realistic model: it hears its daemon, and lets go of what is cancelled.

The model is as large as those that people run, since a step of a small one is over before anything can be asked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.random_model import write_model
from enclave.protocol.bodies import GenerateParams
from enclave.protocol.methods import write_body
from enclave_llama_cpp.gguf import read_header
from enclave_llama_cpp.plugin import LlamaCppBackend
from enclaved.daemon.supervisor.child import Child
from enclaved.daemon.supervisor.launcher import ChildSpec, launch
from enclaved.link.messages import (
    Cancel,
    Chunk,
    Chunks,
    Failed,
    Finished,
    FromChild,
    Load,
    Loaded,
    Prompted,
    Submit,
)
from enclaved.plugin.engine import Placement
from enclaved.plugin.plain import to_plain

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("llama_cpp"), pytest.mark.asyncio]

PACKAGES = ("enclave", "enclaved", "enclave_llama_cpp", "llama_cpp")


@pytest.fixture(scope="module")
def half_a_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    write_model(path)
    return path


class Heard:
    """What a worker said, and an event for each message."""

    def __init__(self) -> None:
        self.messages: list[FromChild] = []
        self._news = asyncio.Event()

    def hear(self, message: FromChild) -> None:
        self.messages.append(message)
        self._news.set()

    async def first(self, kind: type[FromChild], request: str | None = None) -> FromChild:
        while True:
            for message in self.messages:
                if isinstance(message, kind) and request in (None, getattr(message, "request", None)):
                    return message
            self._news.clear()
            await self._news.wait()


@asynccontextmanager
async def a_worker(path: Path) -> AsyncGenerator[tuple[Child, Heard]]:
    """With the model loaded, and nothing to do."""
    spec = ChildSpec("worker", PACKAGES, LlamaCppBackend.preload)
    child = Child(launch(spec, dict(os.environ), []), asyncio.get_running_loop())
    heard = Heard()
    child.on_message = heard.hear
    try:
        await child.wait_greeted()
        size_bytes = path.stat().st_size  # noqa: ASYNC240 - nobody else waits in this loop
        with path.open("rb") as file:
            header = read_header(file, size_bytes)
            placement = Placement(device="cpu", context=4096, sequences=4, threads=2)
            load = Load(
                path.name, LlamaCppBackend.engine, [["weights", path.name, size_bytes]], to_plain(header),
                to_plain(placement), {},
            )  # fmt: skip
            child.send(load, [os.dup(file.fileno())])
        await heard.first(Loaded)
        yield child, heard
    finally:
        child.kill()
        await child.wait_exited()


def prompt_of(tokens: int, first: int) -> bytes:
    return write_body(
        GenerateParams(
            prompt=tuple(300 + (first * 7919 + n * 31) % 30_000 for n in range(tokens)), ignore_eos=True, seed=1
        )
    )


async def test_pings_are_answered_while_a_prompt_is_evaluated_and_a_cancel_ends_it_inside_a_step(
    half_a_billion: Path,
) -> None:
    async with a_worker(half_a_billion) as (child, heard):
        child.send(Submit("long", "generate", 8, 1, "normal", prompt_of(3000, 1)))
        await heard.first(Prompted, "long")
        latencies: list[float] = []
        for _ in range(40):
            began = time.perf_counter()
            assert await child.answers(5.0)
            latencies.append(time.perf_counter() - began)
        assert not any(isinstance(message, Chunk) for message in heard.messages)
        latencies.sort()
        # The machine may be busy otherwise: one in ten may be late.
        assert latencies[-4] < 0.1, latencies
        began = time.perf_counter()
        child.send(Cancel("long"))
        ended = await heard.first(Failed, "long")
        assert isinstance(ended, Failed)
        assert ended.code == "cancelled"
        # A step of a prompt alone takes up to half a second here; the abort does not wait for its end.
        assert time.perf_counter() - began < 0.4
        # What was evaluated before the cancel is there for whoever asks again.
        evaluated = ended.numbers["evaluated_tokens"]
        assert 0 < evaluated < 3000


async def test_aborts_in_the_middle_of_prompts_cost_a_running_stream_no_token(half_a_billion: Path) -> None:
    """The stream's answer, drawn with a seed, goes on whole while long prompts beside it come and are cancelled."""
    async with a_worker(half_a_billion) as (child, heard):
        child.send(Submit("stream", "generate", 80, 1, "normal", prompt_of(50, 2)))
        await heard.first(Chunk, "stream")
        for number in range(4):
            late = f"late{number}"
            child.send(Submit(late, "generate", 8, 1, "normal", prompt_of(2000, 10 + number)))
            await heard.first(Prompted, late)
            child.send(Cancel(late))
            await heard.first(Failed, late)
        await heard.first(Finished, "stream")
        chunks = [m for m in heard.messages if isinstance(m, Chunk) and m.request == "stream"]
        joined = [item for m in heard.messages if isinstance(m, Chunks) for item in m.items if item[0] == "stream"]
        assert sum(chunk.count for chunk in chunks) + sum(int(item[1]) for item in joined) == 80
