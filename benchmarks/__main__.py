"""`make bench`: runs every benchmark, or those named, and prints a table for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import catalog, engine, first_token, idle_memory, wire

BENCHMARKS: dict[str, Callable[[int], None]] = {
    "catalog": catalog.run,
    "engine": engine.run,
    "first_token": first_token.run,
    "idle_memory": idle_memory.run,
    "wire": wire.run,
}


def main() -> None:
    """Runs what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measures Enclave on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default=",".join(engine.PARTS), help="of the engine's; default: %(default)s")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        if name == "engine":
            engine.run(options.rounds, options.parts.split(","))
        else:
            BENCHMARKS[name](options.rounds)


main()
