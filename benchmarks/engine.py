"""The engine against llama.cpp itself: the bare loop over its decode calls, and its own server.

Each contestant runs alone, from start to end, one after the other, round by round; what is compared was measured in the
same round. All have the same model, threads, context and cache types.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from benchmarks.contestants import SEQUENCES, Contestant, Enclave, LlamaServer, Loop, first_token_seconds
from benchmarks.random_model import VOCABULARY, cached_model

WIDTHS = (1, 4, 8, SEQUENCES)
PROMPTS = (100, 1000, 4000)
PROMPT_TOKENS = 100
"""Of a stream whose decoding is measured."""
DECODED_TOKENS = 64
"""Of each stream, after all have begun."""
PREFIX_TOKENS = 2000
LATE_TOKENS = 2000
RUNNING = 4
"""Streams beside which a late prompt arrives."""

PARTS = ("decode", "prompt", "prefix", "arrival")
COMPARED = (("worker's loop", "bare loop"), ("enclave", "llama-server"))
"""Who is compared with whom: those without a client, and those with one."""


@dataclass
class Figures:
    """What was measured: case → contestant → a figure for each round."""

    of_case: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])

    def add(self, case: str, contestant: str, value: float) -> None:
        self.of_case.setdefault(case, {}).setdefault(contestant, []).append(value)
        print(f"  {contestant}: {case}: {value:.3f}", flush=True)


def run(rounds: int, parts: Collection[str] = PARTS) -> None:
    """Measures everything, or some parts, and prints a table."""
    model = cached_model()
    figures = Figures()
    makers: Sequence[Callable[[], Contestant]] = (
        lambda: Enclave(model),
        lambda: LlamaServer(model, unified=False),
        lambda: LlamaServer(model, unified=True),
    )
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}")
        for kind in ("worker", "split", "unified"):
            measure_loop(Loop(model, kind), figures, parts)
        # Whoever comes first has the cooler machine: they take turns.
        for offset in range(len(makers)):
            asyncio.run(measure(makers[(number + offset) % len(makers)](), figures, parts, seed=number))
    print()
    print("\n".join(table(figures)))


def measure_loop(loop: Loop, figures: Figures, parts: Collection[str]) -> None:
    """The cases of a loop without a client; not the longest prompt, which takes half a minute and tells no more."""
    try:
        for width in WIDTHS if "decode" in parts else ():
            figures.add(decode_case(width), loop.name, loop.ask("decode", width))
        for tokens in PROMPTS[:-1] if "prompt" in parts else ():
            figures.add(prompt_case(tokens), loop.name, loop.ask("prompt", tokens))
    finally:
        loop.close()


async def measure(contestant: Contestant, figures: Figures, parts: Collection[str], seed: int) -> None:
    """The cases of a server."""
    numbers = random.Random(seed)

    def prompt(tokens: int) -> list[int]:
        return [1, *(numbers.randrange(300, VOCABULARY) for _ in range(tokens - 1))]

    def add(case: str, value: float) -> None:
        figures.add(case, contestant.name, value)

    await contestant.start()
    try:
        await first_token_seconds(contestant, prompt(64))  # whatever is done once
        for width in WIDTHS if "decode" in parts else ():
            add(decode_case(width), await decoded(contestant, [prompt(PROMPT_TOKENS) for _ in range(width)]))
        for tokens in PROMPTS if "prompt" in parts else ():
            add(prompt_case(tokens), await first_token_seconds(contestant, prompt(tokens)))
        if "prefix" in parts:
            prefix = prompt(PREFIX_TOKENS)
            await first_token_seconds(contestant, [*prefix, *prompt(50)])
            add("prefix of 2,000 at rest, s", await first_token_seconds(contestant, [*prefix, *prompt(100)]))
            add("prefix of 2,000 in use, s", await beside_running(contestant, prefix, prompt(50), prompt(100)))
        if "arrival" in parts:
            running = [prompt(PROMPT_TOKENS) for _ in range(RUNNING)]
            pause, late = await late_arrival(contestant, running, prompt(LATE_TOKENS))
            add("2,000 tokens arrive: longest pause of four streams, s", pause)
            add("2,000 tokens arrive: their first token, s", late)
    finally:
        await contestant.close()


async def decoded(contestant: Contestant, prompts: Sequence[Sequence[int]]) -> float:
    """Tokens a second of all streams together, from when the last has begun to when the first ends."""
    # The first streams are ahead by the time that the others' prompts take.
    tokens = DECODED_TOKENS + 4 * len(prompts)
    times: list[list[float]] = [[] for _ in prompts]

    async def read(number: int) -> None:
        async for count in contestant.stream(prompts[number], tokens):
            times[number] += [time.perf_counter()] * count

    await asyncio.gather(*(read(number) for number in range(len(prompts))))
    began, ended = max(each[0] for each in times), min(each[-1] for each in times)
    between = sum(began < at <= ended for each in times for at in each)
    return between / (ended - began)


async def beside_running(
    contestant: Contestant, prefix: Sequence[int], running: Sequence[int], late: Sequence[int]
) -> float:
    """Seconds to the first token of a prompt that begins like one whose answer is still being made."""
    begun = asyncio.Event()

    async def keep_running() -> None:
        async for _ in contestant.stream([*prefix, *running], 400):
            begun.set()

    task = asyncio.create_task(keep_running())
    await begun.wait()
    seconds = await first_token_seconds(contestant, [*prefix, *late])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seconds


async def late_arrival(
    contestant: Contestant, prompts: Sequence[Sequence[int]], late: Sequence[int]
) -> tuple[float, float]:
    """While streams run, a long prompt comes: the longest time that one of them stands still from then on, and how long
    the late prompt's first token takes."""
    times: list[list[float]] = [[] for _ in prompts]
    all_run, came = asyncio.Event(), asyncio.Event()

    async def read(number: int) -> None:
        async for _ in contestant.stream(prompts[number], 2000):
            times[number].append(time.perf_counter())
            came.set()
            if all(len(each) >= 5 for each in times):
                all_run.set()

    tasks = [asyncio.create_task(read(number)) for number in range(len(prompts))]
    await all_run.wait()
    arrived = time.perf_counter()
    seconds = await first_token_seconds(contestant, late)
    ended = time.perf_counter()
    # One token more of each stream, so that a pause which lasts until then counts whole.
    counts = [len(each) for each in times]
    while any(len(each) <= count for each, count in zip(times, counts, strict=True)):
        came.clear()
        await came.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    pauses = [
        later - earlier
        for each in times
        for earlier, later in itertools.pairwise(each)
        if later > arrived and earlier < ended
    ]
    return max(pauses), seconds


def decode_case(width: int) -> str:
    return f"{width} stream{'s' if width > 1 else ''}, tokens/s"


def prompt_case(tokens: int) -> str:
    return f"first token of {tokens:,}, s"


def table(figures: Figures) -> list[str]:
    """A row for each case: medians with their spread, and how good ours is against the better of its rivals."""
    names = list(dict.fromkeys(name for of_case in figures.of_case.values() for name in of_case))
    heads = ["case", *names, *(f"{ours} to the better {theirs}" for ours, theirs in COMPARED)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for case, of_case in figures.of_case.items():
        cells = [spread(of_case[name]) if name in of_case else "" for name in names]
        ratios = [ratio(case, of_case, ours, theirs) for ours, theirs in COMPARED]
        lines.append(f"| {' | '.join([case, *cells, *ratios])} |")
    return lines


def spread(values: Sequence[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 1 if statistics.median(values) >= 10 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(case: str, of_case: dict[str, list[float]], ours: str, theirs: str) -> str:
    """Median over the rounds of ours against the better of its rivals in that round; above 1 ours is better."""
    rivals = [values for name, values in of_case.items() if name.startswith(theirs)]
    if not rivals or ours not in of_case:
        return ""
    is_speed = case.endswith("tokens/s")
    ratios = [
        mine / max(them) if is_speed else min(them) / mine for mine, *them in zip(of_case[ours], *rivals, strict=True)
    ]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
