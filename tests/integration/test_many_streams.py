"""A hundred streams of ten client processes for a minute: all complete, and no memory is left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil
import pytest

from tests.conftest import StartDaemon
from tests.integration.wire import anonymous_bytes, wait_for_instance
from tests.running import RunningDaemon

PROCESSES = 10
STREAMS_EACH = 10
TOKENS_A_SECOND = 50
GROWN_BYTES_MAX = 4 * 1024 * 1024

CLIENT = """
    import asyncio, enclave, sys

    async def read(client, tokens):
        stream = client.generate(sys.argv[2], "x", temperature=0, max_tokens=tokens)
        text = "".join([chunk.text async for chunk in stream])
        usage = (await stream.result()).usage
        return text.split()[: 10] == [str(number) for number in range(1, 11)] and usage.completion_tokens == tokens

    async def main():
        async with enclave.AsyncClient(endpoint=sys.argv[1], start=False) as client:
            whole = await asyncio.gather(*(read(client, int(sys.argv[3])) for _ in range(int(sys.argv[4]))))
            print(whole.count(True))

    asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_hundred_streams_for_a_minute_are_complete_and_leave_no_memory(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_INSTANCES_SEQUENCES": str(PROCESSES * STREAMS_EACH)})
    # What is imported and kept from the first use on, and the room that the allocators take at the highest.
    whole(daemon, tokens=60 * TOKENS_A_SECOND)
    daemon_pid, worker_pid = daemon.process.pid, busiest_child(daemon)
    before = anonymous_bytes(daemon_pid), anonymous_bytes(worker_pid)
    assert whole(daemon, tokens=60 * TOKENS_A_SECOND) == PROCESSES * STREAMS_EACH
    with daemon.client() as client:
        wait_for_instance(client, lambda instance: not instance.get("askers"))
    after = anonymous_bytes(daemon_pid), anonymous_bytes(worker_pid)
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert max(grown) < GROWN_BYTES_MAX, grown


def whole(daemon: RunningDaemon, tokens: int) -> int:
    """How many streams came whole to clients in processes of their own."""
    # Without a prompt cache, which keeps the tokens of what has ended, and rightly so.
    model = f"fake:a?tokens_per_second={TOKENS_A_SECOND}&context=4096&sequences=128&trim=false"
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), daemon.endpoint, model, str(tokens), str(STREAMS_EACH)]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    try:
        return sum(int(client.communicate(timeout=300)[0]) for client in clients)
    finally:
        for client in clients:
            client.kill()
            client.wait()


def busiest_child(daemon: RunningDaemon) -> int:
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    return max(children, key=lambda child: child.cpu_times().user).pid
