"""`make run`: the main job, with the model that comes with Enclave, in a home that is gone afterwards.

Starts a daemon, loads the model, streams an answer, says what happened, and ends the daemon.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import enclave
from enclave.discovery import running, wait_until_ended
from enclave.paths import places

START_SECONDS = 60.0
"""A daemon that is not ready by then would outlive this program; a cold start on a slow disk takes ten at most."""


def main() -> int:
    """Gives the exit code: 0 when everything worked."""
    parser = argparse.ArgumentParser(prog="make run", description="Shows what Enclave does.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--max-tokens", type=int, default=60)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="enclave-demo-") as home:
            os.environ["ENCLAVE_HOME"] = home
            try:
                show(options.model, options.prompt, options.max_tokens)
            finally:
                with interruptions_kept():
                    end()
    except enclave.EnclaveError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def interruptions_kept() -> Generator[None]:
    """Keeps Ctrl-C and SIGTERM until the end of the block: a daemon is either started or not, and ended or not."""
    kept: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        kept.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if kept:
        raise KeyboardInterrupt


def end() -> None:
    """Ends the daemon of this home if there is one, and waits for its end: its files are about to be removed."""
    where = places(os.environ)
    if running(where) is None:
        return
    with enclave.Client(name="make run", start=False) as client:
        client.shutdown(now=True)
    wait_until_ended(where)
    print("The daemon has ended.")


def show(model: str, prompt: str, tokens_max: int) -> None:
    """Does the main job and tells about it. The daemon is left running."""
    with interruptions_kept():
        began = time.perf_counter()
        print("Starting the daemon …", flush=True)
        client = enclave.Client(name="make run", priority="interactive", timeout=START_SECONDS)
        info = client.info()
    with client:
        print(f"  enclaved {info.version}, pid {info.pid}, ready after {since(began)}")
        print(f"Loading {model} …", flush=True)
        began = time.perf_counter()
        client.load(model)
        (instance,) = client.instances()
        print(f"  in worker {instance.pid} on {instance.device} after {since(began)}")
        if instance.walls is not None:
            print(f"  its sandbox: {instance.walls.state}")
        note = next((entry.note for entry in client.models() if entry.name == instance.model), "")
        if note:
            print(f"  note: {note}")
        print(f"\n{prompt}", end="", flush=True)
        stream = client.generate(model, prompt, max_tokens=tokens_max, seed=1)
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        tell(stream.result())


def tell(result: enclave.TextResult) -> None:
    """What became of the request."""
    receipt, usage = result.receipt, result.usage
    seconds = receipt.decoding_seconds or 0.0
    speed = f", {(usage.completion_tokens - 1) / seconds:,.0f} tokens/s" if seconds > 0 else ""
    print(f"\n\n{receipt.model} ran on {receipt.device} through {receipt.backend}:")
    print(f"  {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} answered{speed}")


def since(began: float) -> str:
    """How long ago, for a person."""
    return f"{time.perf_counter() - began:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
