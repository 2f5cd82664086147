"""The order in which waiting requests are looked at."""

from __future__ import annotations

from typing import get_args

from core_driver import NO_WISH, a_need
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.events import Priority
from enclaved.core.fairness import in_order
from enclaved.core.ids import ClientId, RequestId
from enclaved.core.state import Request


@given(st.lists(st.sampled_from(get_args(Priority))))
def test_class_comes_first_and_arrival_within_it(priorities: list[Priority]) -> None:
    requests = [
        Request(RequestId(f"r{number}"), ClientId("client"), a_need(), NO_WISH, priority, float(number), "cause")
        for number, priority in enumerate(priorities)
    ]
    rank = ["interactive", "normal", "background"].index
    assert in_order(requests) == sorted(requests, key=lambda request: (rank(request.priority), request.arrived_at))
