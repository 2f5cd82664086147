"""`enclave bench`: what it asks, and how it tells what came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from .conftest import Run
    from .fake_daemon import FakeDaemon


def asked(daemon: FakeDaemon) -> list[dict[str, object]]:
    return [dict(arguments) for name, arguments in daemon.asked if name == "generate"]


def test_it_measures_prompts_and_answers_that_nobody_has_asked_before(run: Run, daemon: FakeDaemon) -> None:
    done = run("bench", "tiny", "--rounds", "2", "--prompt-tokens", "100", "--tokens", "8")
    assert done.exit_code == 0
    requests = asked(daemon)
    assert len(requests) == 2 * (1 + 1 + 4)
    prompts = [tuple(cast("Any", request["prompt"])) for request in requests]
    assert len(set(prompts)) == len(prompts)
    assert [len(prompt) for prompt in prompts[:3]] == [100, 32, 32]
    assert all(request["ignore_eos"] is True and request["temperature"] == 0 for request in requests)
    # The answers that come: 100 tokens of a prompt in 10 ms, 42 of an answer in a second.
    assert "10000.0" in done.out
    assert "42.0" in done.out
    assert "168.0" in done.out


def test_as_json_it_is_one_document_with_medians_and_spread(run: Run, daemon: FakeDaemon) -> None:
    document = run("bench", "tiny", "--streams", "2", "--rounds", "1", "--json").json
    assert document["prompt"]["tokens"] == 512
    assert document["prompt"]["first_token_seconds"] == {"median": 0.02, "min": 0.02, "max": 0.02}
    assert document["decode"] == [{"streams": 2, "tokens_per_second": {"median": 84.0, "min": 84.0, "max": 84.0}}]
    assert document["backend"] == "fake"


def test_what_the_context_does_not_hold_is_refused_with_what_to_change(run: Run, daemon: FakeDaemon) -> None:
    done = run("bench", "tiny", "--prompt-tokens", "4000")
    assert done.exit_code == 2
    assert "the context of 2,048 is too small" in done.err
    assert "--context" in done.err
    assert asked(daemon) == []


@pytest.mark.parametrize("arguments", [("--streams", "0"), ("--rounds", "0"), ("--tokens", "1")])
def test_numbers_out_of_range_are_refused(run: Run, arguments: tuple[str, str]) -> None:
    assert run("bench", "tiny", *arguments).exit_code == 2
