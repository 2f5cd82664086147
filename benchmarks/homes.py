"""Homes and daemons for benchmarks: each measurement in a folder of its own that is gone afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import enclave
from enclave.discovery import running, wait_until_ended
from enclave.paths import places


@contextmanager
def fresh_home() -> Generator[dict[str, str], None, None]:
    """An environment with an empty ENCLAVE_HOME; its daemon is ended with it."""
    with tempfile.TemporaryDirectory(prefix="enclave-bench-", ignore_cleanup_errors=True) as folder:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ENCLAVE_")}
        environment["ENCLAVE_HOME"] = folder
        try:
            yield environment
        finally:
            end_daemon(environment)


def end_daemon(environment: Mapping[str, str]) -> None:
    """Ends the daemon of a home, if there is one, and waits for it."""
    where = places(environment)
    found = running(where)
    if found is None:
        return
    with enclave.Client(endpoint=found.address, start=False) as client:
        client.shutdown()
    wait_until_ended(where)


def endpoint_of(environment: Mapping[str, str]) -> str:
    """Where the daemon of a home listens. Raises LookupError when there is none."""
    found = running(places(environment))
    if found is None:
        raise LookupError(f"no daemon runs for {environment['ENCLAVE_HOME']}")
    return found.address
