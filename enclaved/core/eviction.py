"""Which instances must go so that a model fits. A silent what-if question: nothing changes here."""

from __future__ import annotations

from collections.abc import Iterable

from enclaved.core.state import Instance


def victims(candidates: Iterable[Instance], bytes_needed: int) -> list[Instance] | None:
    """The instances to unload so that `bytes_needed` more become free; None when even all are not enough.

    Idle ones go before busy ones (which finish their requests first), and within each the least recently used first;
    whoever turns out not to be needed for the sum is given back, largest first.
    """
    if bytes_needed <= 0:
        return []
    ordered = sorted(candidates, key=lambda instance: (bool(instance.leases), instance.used_at))
    chosen: list[Instance] = []
    freed = 0
    for instance in ordered:
        if freed >= bytes_needed:
            break
        chosen.append(instance)
        freed += instance.bytes_booked
    if freed < bytes_needed:
        return None
    for instance in sorted(chosen, key=lambda instance: -instance.bytes_booked):
        if freed - instance.bytes_booked >= bytes_needed:
            chosen.remove(instance)
            freed -= instance.bytes_booked
    return chosen
