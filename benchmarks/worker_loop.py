"""The worker's own loop on the llama.cpp engine, without a daemon or a client: what is between the bare loop and what a
client sees.

`python -m benchmarks.worker_loop MODEL SEQUENCES CONTEXT THREADS` answers the same requests as bare_loop.py. Messages
are packed as for the daemon, and then dropped.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare_loop import DECODE_STEPS, PROMPT_TOKENS, answer_requests
from enclave.protocol.bodies import GenerateParams
from enclave.protocol.methods import write_body
from enclave_llama_cpp.engine import LlamaCppEngine
from enclave_llama_cpp.gguf import read_header
from enclaved.link.messages import Chunk, Finished, FromChild, Submit, encode, joined
from enclaved.plugin.engine import LoadRequest, OpenFile, Placement
from enclaved.worker.loop import EngineLoop


class WorkerLoop:
    """A loop and who hears it."""

    def __init__(self, path: Path, *, sequences: int, context: int, threads: int) -> None:
        size_bytes = path.stat().st_size
        placement = Placement("cpu", context, sequences, threads, flash_attention=True)
        with path.open("rb") as file:
            files = (OpenFile("weights", path.name, file.fileno(), size_bytes),)
            request = LoadRequest(path.name, files, read_header(file, size_bytes), placement)
            engine = LlamaCppEngine.load(request, lambda _: True)
        self._vocabulary = engine.vocabulary.size
        self._loop = EngineLoop(engine, self._hear, time.perf_counter)
        self._numbers = random.Random(1)
        self._asked = 0
        self._tokens: dict[str, int] = {}
        self._finished: set[str] = set()

    def decode(self, streams: int) -> float:
        """Tokens a second of so many streams, after all have begun."""
        # The first streams are ahead by the steps in which the others' prompts are evaluated.
        asked = [self._submit(PROMPT_TOKENS, DECODE_STEPS + 4 * streams) for _ in range(streams)]
        while not all(self._tokens[request] for request in asked):
            self._loop.turn()
        before, began = sum(self._tokens.values()), time.perf_counter()
        while not self._finished.intersection(asked):
            self._loop.turn()
        seconds = time.perf_counter() - began
        count = sum(self._tokens.values()) - before
        self._run_out(asked)
        return count / seconds

    def prompt(self, tokens: int) -> float:
        """Seconds from a prompt to its first token."""
        began = time.perf_counter()
        request = self._submit(tokens, 1)
        while not self._tokens[request]:
            self._loop.turn()
        seconds = time.perf_counter() - began
        self._run_out([request])
        return seconds

    def _submit(self, prompt_tokens: int, tokens: int) -> str:
        request = str(self._asked)
        self._asked += 1
        self._tokens[request] = 0
        prompt = tuple(self._numbers.randrange(300, self._vocabulary) for _ in range(prompt_tokens))
        body = write_body(GenerateParams(prompt=prompt, temperature=0.0, ignore_eos=True))
        self._loop.post(Submit(request, "generate", tokens, 1, "normal", body))
        return request

    def _run_out(self, asked: Sequence[str]) -> None:
        while not self._finished.issuperset(asked):
            self._loop.turn()

    def _hear(self, messages: Sequence[FromChild]) -> None:
        for message in messages:
            if isinstance(message, Chunk):
                self._tokens[message.request] += 1
            elif isinstance(message, Finished):
                self._finished.add(message.request)
        for message in joined(messages):
            encode(message)


def main() -> None:
    """A worker's loop that answers requests."""
    path, sequences, context, threads = sys.argv[1:]
    answer_requests(WorkerLoop(Path(path), sequences=int(sequences), context=int(context), threads=int(threads)))


if __name__ == "__main__":
    main()
