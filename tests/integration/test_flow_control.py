"""A client that does not read costs the daemon what it is owed and no more, loses nothing, and is noticed by nobody."""

from __future__ import annotations

import sys

import pytest

from enclave.protocol import Chunk, Credit, Result, read_chunks, read_result
from enclave_fake.engine import counting_byte
from tests.conftest import StartDaemon
from tests.integration.wire import WireClient, anonymous_bytes, wait_for_instance
from tests.running import RunningDaemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

TOKENS = 200_000
FEWER_TOKENS = 50_000
MODEL = "fake:endless?context=300000"
SLACK_BYTES = 8_000_000


RESTS = pytest.mark.parametrize("seconds", [0, pytest.param(30, marks=pytest.mark.long)])
"""For how long the client rests when all that can be made is made."""


def expected(tokens: int) -> bytes:
    return bytes(counting_byte(index) for index in range(tokens))


def read_all(client: WireClient, request_id: int, tokens: int = TOKENS) -> tuple[str, int, int]:
    """The text, the bytes of the bodies and the messages of an answer, with credit granted as it is read."""
    text: list[str] = []
    body_bytes = messages = 0
    while True:
        message = client.next()
        if isinstance(message, Result):
            result = read_result("generate", message)
            assert result.usage.completion_tokens == tokens
            return "".join(text), body_bytes, messages
        if isinstance(message, Chunk):
            assert message.id == request_id
            text += [value.text for value in read_chunks("generate", message)]
            body_bytes += len(message.body)
            messages += 1
            client.send(Credit(id=message.id, chunks=1))


@RESTS
def test_what_waits_for_a_client_that_does_not_read_costs_its_bytes_and_all_of_it_comes(
    daemon: RunningDaemon, seconds: float
) -> None:
    with daemon.client() as watcher, WireClient(daemon.endpoint) as slow:
        watcher.generate(MODEL, "x", max_tokens=1000, context=300_000).result()
        slow.hello()
        before_bytes = anonymous_bytes(daemon.process.pid)
        request_id = slow.generate(MODEL, max_tokens=TOKENS, context=300_000)
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 1)
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 0)
        assert slow.is_kept(seconds)
        grown_bytes = anonymous_bytes(daemon.process.pid) - before_bytes
        text, body_bytes, messages = read_all(slow, request_id)
    assert text.encode() == expected(TOKENS)
    assert grown_bytes <= 1.2 * body_bytes + SLACK_BYTES
    assert messages < 64 + body_bytes // 100_000


@RESTS
def test_at_its_budget_a_client_that_does_not_read_pauses_its_sequence_alone(
    start_daemon: StartDaemon, seconds: float
) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": "1000000"})
    with daemon.client() as other, WireClient(daemon.endpoint) as slow:
        other.generate(MODEL, "x", max_tokens=1000, context=300_000).result()
        assert slow.hello().limits.unread_bytes == 1_000_000
        before_bytes = anonymous_bytes(daemon.process.pid)
        request_id = slow.generate(MODEL, max_tokens=TOKENS, context=300_000)
        wait_for_instance(other, lambda instance: instance.get("paused", 0) == 1)
        assert slow.is_kept(seconds)
        assert anonymous_bytes(daemon.process.pid) - before_bytes <= 1.2 * 1_000_000 + SLACK_BYTES
        answer = other.generate(MODEL, "x", temperature=0, max_tokens=500, context=300_000).result()
        assert answer.text.encode() == expected(500)
        (instance,) = other.instances()
        assert (instance.leases, instance.paused) == (1, 1)
        text, _, _ = read_all(slow, request_id)
        assert text.encode() == expected(TOKENS)
        assert anonymous_bytes(daemon.process.pid) - before_bytes <= 1.2 * 1_000_000 + SLACK_BYTES


def test_clients_that_do_not_read_leave_their_places_in_the_model_to_others(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": "100000", "ENCLAVE_INSTANCES_SEQUENCES": "2"})
    with daemon.client() as other, WireClient(daemon.endpoint) as first, WireClient(daemon.endpoint) as second:
        slow = (first, second)
        requests: list[int] = []
        for client in slow:
            client.hello()
            requests.append(client.generate(MODEL, max_tokens=FEWER_TOKENS, context=300_000))
        wait_for_instance(other, lambda instance: instance.get("paused", 0) == 2)
        for _ in range(3):
            answer = other.generate(MODEL, "x", temperature=0, max_tokens=50, context=300_000, deadline=30).result()
            assert answer.text.encode() == expected(50)
        # Their sequences were lent, and are evaluated again: they go on with the very next token.
        text, _, _ = read_all(first, requests[0], FEWER_TOKENS)
        assert text.encode() == expected(FEWER_TOKENS)


def test_credit_without_reading_gains_nothing(start_daemon: StartDaemon) -> None:
    """A client that grants a great deal and reads nothing is owed no more than the budget either."""
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": "250000"})
    with daemon.client() as other, WireClient(daemon.endpoint, receive_mark=1) as greedy:
        other.generate(MODEL, "x", max_tokens=1000, context=300_000).result()
        greedy.hello()
        before_bytes = anonymous_bytes(daemon.process.pid)
        request_id = greedy.generate(MODEL, max_tokens=FEWER_TOKENS, context=300_000, credit=65_536)
        wait_for_instance(other, lambda instance: instance.get("paused", 0) == 1)
        assert anonymous_bytes(daemon.process.pid) - before_bytes <= 1.2 * 250_000 + SLACK_BYTES
        text, _, _ = read_all(greedy, request_id, FEWER_TOKENS)
    assert text.encode() == expected(FEWER_TOKENS)


def test_a_socket_with_zeromqs_own_mark_may_rest_longer_than_a_silent_client(start_daemon: StartDaemon) -> None:
    """A socket at its mark no longer answers heartbeats: with all its credit used at once, it would count as gone."""
    # Enough for more messages than the mark, and for fewer bytes than the system takes in by itself: pings get through.
    daemon = start_daemon({"ENCLAVE_BROKER_SILENT_SECONDS_MAX": "5", "ENCLAVE_BROKER_UNREAD_BYTES_MAX": "300000"})
    with daemon.client() as other, WireClient(daemon.endpoint, receive_mark=1000) as slow:
        other.generate(MODEL, "x", max_tokens=1000, context=300_000).result()
        slow.hello()
        request_id = slow.generate(MODEL, max_tokens=FEWER_TOKENS, context=300_000, credit=65_536)
        assert slow.is_kept(8)
        text, _, _ = read_all(slow, request_id, FEWER_TOKENS)
    assert text.encode() == expected(FEWER_TOKENS)
