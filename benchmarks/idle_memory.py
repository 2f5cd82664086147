"""How much memory the idle daemon holds, before and after it has served a request; its children are not counted."""

from __future__ import annotations

from pathlib import Path

import enclave
from benchmarks.homes import fresh_home
from enclave.discovery import start_daemon
from enclave.paths import places


def run(rounds: int) -> None:
    """Prints anonymous and resident memory in MiB; one round says it all."""
    del rounds
    print("memory of the idle daemon, MiB (anonymous / resident)")
    with fresh_home() as environment:
        endpoint = start_daemon(places(environment), environment).address
        with enclave.Client(endpoint=endpoint, start=False) as client:
            pid = client.info().pid
            print(f"  {'just started':<28} {memory(pid)}")
            client.generate("tiny", "Hello", max_tokens=64).result()
            client.unload("tiny")
            print(f"  {'after a request':<28} {memory(pid)}")


def memory(pid: int) -> str:
    """`RssAnon / VmRSS` of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return f"{kilobytes['RssAnon'] / 1024:.1f} / {kilobytes['VmRSS'] / 1024:.1f}"
