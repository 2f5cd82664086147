"""How many compute threads each busy instance gets."""

from __future__ import annotations

from collections.abc import Mapping

from enclaved.core.ids import InstanceId


def grants(busy: Mapping[InstanceId, int], cores: int) -> dict[InstanceId, int]:
    """Whole threads for each busy instance, given the most that it has use for (`busy`).

    Each gets one; the rest goes round, the earlier ones first, to whoever has use for more. The sum exceeds `cores`
    only when there are more busy instances than cores.
    """
    granted = dict.fromkeys(busy, 1)
    left = cores - len(granted)
    while left > 0:
        wanting = [instance for instance, most in busy.items() if granted[instance] < most][:left]
        if not wanting:
            break
        for instance in wanting:
            granted[instance] += 1
        left -= len(wanting)
    return granted
