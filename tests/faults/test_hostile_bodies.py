"""Bodies that the daemon reads itself, in the loop that serves everybody: none costs it much time or memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave.protocol import Bye, Error, Request, Result, write_body
from enclave.protocol.bodies import UnloadParams
from enclave.protocol.methods import METHODS, AnsweredBy
from enclaved.daemon.methods import OWN_BODY_BYTES_MAX
from tests.integration.wire import WireClient, anonymous_bytes, wait_for_instance
from tests.running import REPOSITORY, RunningDaemon

MIB = 1024 * 1024
RELAYED = ("tokenize", "detokenize")
"""Whose bodies a child reads; the daemon passes them on, up to a larger bound."""
OWN = [
    row.name
    for row in METHODS.values()
    if row.built and row.answered_by is not AnsweredBy.WORKER and row.name not in RELAYED
]
GROWTH_MAX = 100 * MIB
"""What was received, twice, and what the allocator keeps of it. Read, the largest of these takes ten times as much."""


def an_array(item: bytes, count: int) -> bytes:
    return b"\x81\xa1x\xdd" + count.to_bytes(4, "big") + item * count


BODIES = [
    ("four million empty maps", an_array(b"\x80", 4_000_000), "too_large"),
    ("eight times four million numbers", b"\x81\xa1x\x98" + an_array(b"\x01", 4_000_000)[3:] * 8, "too_large"),
    ("thirty megabytes of text", b"\x81\xa5model\xdb" + (30 * MIB).to_bytes(4, "big") + b"x" * 30 * MIB, "too_large"),
    ("a byte too much", b"\xc1" * (OWN_BODY_BYTES_MAX + 1), "too_large"),
    ("as many empty maps as may be", an_array(b"\x80", OWN_BODY_BYTES_MAX - 8), None),
    ("nested as deep as may be", b"\x91" * (OWN_BODY_BYTES_MAX - 1) + b"\xc0", "bad_request"),
    ("no MessagePack", b"\xc1", "bad_request"),
    ("cut off", b"\x81\xa5model", "bad_request"),
    ("two values", b"\x80\x80", "bad_request"),
]


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(("body", "code"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_a_hostile_body_is_refused_by_every_method_that_the_daemon_answers(
    daemon: RunningDaemon, body: bytes, code: str | None
) -> None:
    with daemon.client() as honest, WireClient(daemon.endpoint) as client:
        honest.generate("fake:a", "x", max_tokens=1).result()
        client.hello()
        before = peak_bytes(daemon.process.pid)
        for method in OWN:
            if code is None and method in ("daemon.shutdown", "events.subscribe"):
                continue  # they do what they are asked to
            client.send(Request(id=client.session.next_id(), method=method, body=body))
            while not isinstance(end := client.next(), (Result, Error)):
                continue
            if code is not None:
                assert isinstance(end, Error)
                assert (end.code, end.field) == (code, "body")
            assert honest.generate("fake:a", "x", max_tokens=1).result().text
        assert peak_bytes(daemon.process.pid) - before < GROWTH_MAX


@pytest.mark.parametrize("body", [case[1] for case in BODIES], ids=[case[0] for case in BODIES])
def test_a_hostile_body_for_a_vocabulary_is_refused_and_ends_nothing(daemon: RunningDaemon, body: bytes) -> None:
    with daemon.client() as honest, WireClient(daemon.endpoint) as client:
        honest.tokenize("fake:a", "x")
        client.hello()
        before = peak_bytes(daemon.process.pid)
        for method in RELAYED:
            client.send(Request(id=client.session.next_id(), method=method, model="fake:a", body=body))
            while not isinstance(end := client.next(), (Result, Error)):
                continue
            assert isinstance(end, Error)
            assert end.code in ("bad_request", "too_large")
            assert honest.tokenize("fake:a", "x")
        assert peak_bytes(daemon.process.pid) - before < GROWTH_MAX


def test_the_bound_is_that_of_the_protocol() -> None:
    page = (REPOSITORY / "docs" / "protocol.md").read_text()
    assert f"{OWN_BODY_BYTES_MAX:,} bytes" in " ".join(page.split())


def test_what_a_session_waited_for_is_forgotten_with_it(daemon: RunningDaemon) -> None:
    body = write_body(UnloadParams(model="fake:stuck?tokens_per_second=0.01"))
    padded = b"\x82" + body[1:] + b"\xa3pad\xc5\xea\x60" + bytes(60_000)
    with daemon.client() as other, WireClient(daemon.endpoint) as client:
        running = other.generate("fake:stuck?tokens_per_second=0.01", "x")
        wait_for_instance(other, lambda instance: instance.get("leases") == 1)
        before = anonymous_bytes(daemon.process.pid)
        for _ in range(40):
            client.hello_again("comes and goes")
            for _ in range(100):
                client.send(Request(id=client.session.next_id(), method="instances.unload", body=padded))
            client.send(Bye())
        other.health()
        # 240 MB were sent.
        assert anonymous_bytes(daemon.process.pid) - before < 60 * MIB
        running.cancel()
