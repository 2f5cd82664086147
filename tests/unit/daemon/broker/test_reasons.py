"""Each reason of the core has words for a person and a code of the protocol."""

from __future__ import annotations

import re

import pytest

from enclave.protocol.errors import ERROR_CODES
from enclaved.core.reasons import Reason, Why
from enclaved.daemon.broker.reasons import REASONS, refusal_of


@pytest.mark.parametrize("why", Why)
def test_each_reason_has_a_row_with_a_code_of_the_protocol(why: Why) -> None:
    assert REASONS[why].code in ERROR_CODES
    assert REASONS[why].message.endswith(".")


@pytest.mark.parametrize("why", Why)
def test_a_reason_without_its_numbers_still_has_an_answer(why: Why) -> None:
    assert "{" not in refusal_of(Reason(why)).message


def test_numbers_are_shown_and_passed_on() -> None:
    numbers = {"needed_bytes": 3 * 1024**3, "limit_bytes": 1024**3, "context": 4096, "device": "cpu"}
    refusal = refusal_of(Reason(Why.TOO_LARGE_FOR_MEMORY, numbers), 2.5)
    assert re.search(r"3\.0 GiB.*4096.*1\.0 GiB", refusal.message)
    assert refusal.numbers == {"needed_bytes": 3 * 1024**3, "limit_bytes": 1024**3, "context": 4096}
    assert refusal.retry_after == 2.5


def test_words_of_a_worker_travel_apart_from_ours() -> None:
    refusal = refusal_of(Reason(Why.WORKER_DIED, detail="{braces} and secrets"))
    assert refusal.detail == "{braces} and secrets"
    assert "secrets" not in refusal.message
