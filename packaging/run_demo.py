"""`make run`: the main job, with the model that comes with Enclave, in a home that is gone afterwards.

Starts a daemon, loads the model, streams an answer, says what happened, and ends the daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

import enclave
from enclave.discovery import wait_until_ended
from enclave.paths import places


def main() -> int:
    """Gives the exit code: 0 when everything worked."""
    parser = argparse.ArgumentParser(prog="make run", description="Shows what Enclave does.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--max-tokens", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enclave-demo-") as home:
        os.environ["ENCLAVE_HOME"] = home
        try:
            show(options.model, options.prompt, options.max_tokens)
        except enclave.EnclaveError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


def show(model: str, prompt: str, tokens_max: int) -> None:
    """Does the main job and tells about it. The daemon is ended whatever happens."""
    began = time.perf_counter()
    print("Starting the daemon …", flush=True)
    with enclave.Client(name="make run", priority="interactive") as client:
        try:
            info = client.info()
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
        finally:
            client.shutdown()
            wait_until_ended(places(os.environ))
    print("The daemon has ended.")


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
