"""In which order waiting requests are looked at: by class, then by arrival."""

from __future__ import annotations

from collections.abc import Iterable

from enclaved.core.events import Priority
from enclaved.core.state import Request

_RANK: dict[Priority, int] = {"interactive": 0, "normal": 1, "background": 2}


def in_order(requests: Iterable[Request]) -> list[Request]:
    """Interactive before normal before background; within a class the older first (the sort is stable)."""
    return sorted(requests, key=lambda request: _RANK[request.priority])
