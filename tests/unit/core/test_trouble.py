"""The core in a world of trouble: safe after every event, and done with everyone once the trouble ends."""

from __future__ import annotations

from random import Random

import pytest
from core_environment import Environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclaved.core.events import Load


def _run(environment: Environment, events: int, shut_down: bool) -> Environment:
    environment.trouble(events)
    if shut_down:
        environment.shut_down()
        environment.trouble(events // 4)
    waiting = len(environment.core.state.waiting())
    decided = len(environment.core.actions)
    environment.heal()
    environment.check_the_end()
    loads = [action for action in environment.core.actions[decided:] if isinstance(action, Load)]
    assert len(loads) <= waiting, "a load served nobody"
    if shut_down:
        assert environment.workers == {}
    return environment


@given(random=st.randoms(use_true_random=False), events=st.integers(1, 120), shut_down=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_request_ends_exactly_once_whatever_happens(random: Random, events: int, shut_down: bool) -> None:
    _run(Environment(random), events, shut_down)


@pytest.mark.parametrize("seed", range(60))
def test_every_request_of_a_longer_story_ends_exactly_once(seed: int) -> None:
    _run(Environment(Random(seed)), 400, shut_down=seed % 3 == 0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_every_request_of_many_longer_stories_ends_exactly_once(seed: int) -> None:
    _run(Environment(Random(seed)), 1500, shut_down=seed % 3 == 0)


@pytest.mark.parametrize("seed", range(5))
def test_equal_seeds_give_equal_actions(seed: int) -> None:
    first, second = (_run(Environment(Random(seed)), 300, shut_down=False).core for _ in range(2))
    assert first.actions == second.actions
    assert first.story.records() == second.story.records()
