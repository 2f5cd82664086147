"""Where a share of all probability is reached, without putting a whole vocabulary in order.

The tokens are counted into buckets by their distance from the first; only the bucket in which the share is reached is
sorted. With 128,000 tokens that takes half a millisecond, to sort them all takes twelve.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BUCKETS_A_UNIT = 32
BUCKETS = 2048
"""What is further away than 64 units, which is e^-64 of the likeliest, comes into the last."""
PIECE = 16_384
"""Keys counted at once. Arrays as long as the vocabulary, each fetched from the system and given back, take four times
as long."""

COLUMNS_A_VALUE = 4
"""Into so many columns the values are dealt for each that is wanted: about a seventh too many are then found."""
COLUMNS_MIN = 256
HEIGHT_MIN = 8
"""With fewer values a column, all values may as well be taken."""

_Numbers = NDArray[np.floating[Any]]


def until(
    keys: _Numbers, share: float, *, side: Literal["left", "right"], weights: _Numbers | None = None
) -> NDArray[np.intp]:
    """Places of the smallest keys (lower place first among equals) up to the one at which their weights together reach
    (`left`) or exceed (`right`) this share of all. That one is the last, the others come in any order; whatever the
    rounding, it has a weight.

    keys: 0 or more, perhaps infinite. weights: not all 0; None: e^-key.
    """
    buckets, bucket, ending = _ending(keys, share, side, weights=weights)
    return np.concatenate([np.flatnonzero(buckets < bucket), ending])


def place_at(keys: _Numbers, ids: NDArray[np.int32], temperature: float, share: float) -> int:
    """The place at which the weights e^(-key/temperature) of the smallest keys, lower id first among equals, together
    exceed this share of all."""
    return int(_ending(keys, share, "right", ids=ids, temperature=temperature)[2][-1])


def _ending(
    keys: _Numbers,
    share: float,
    side: Literal["left", "right"],
    *,
    weights: _Numbers | None = None,
    ids: NDArray[np.int32] | None = None,
    temperature: float = 1.0,
) -> tuple[NDArray[np.int16], int, NDArray[np.intp]]:
    """The bucket of each key, the bucket in which the share is reached, and the places in this one up to there."""
    buckets = np.empty(len(keys), np.int16)
    masses = np.zeros(BUCKETS)
    for start in range(0, len(keys), PIECE):
        piece = slice(start, start + PIECE)
        buckets[piece] = np.minimum(keys[piece] * BUCKETS_A_UNIT, BUCKETS - 1)
        weight = np.exp(keys[piece] / -temperature) if weights is None else weights[piece]
        masses += np.bincount(buckets[piece], weight, BUCKETS)
    cumulated: NDArray[np.float64] = np.cumsum(masses)
    wanted = share * float(cumulated[-1])
    bucket = _reached(cumulated, wanted, side)
    inside = np.flatnonzero(buckets == bucket)
    inside = inside[np.lexsort((inside if ids is None else ids[inside], keys[inside]))]
    weight = np.exp(keys[inside] / -temperature) if weights is None else weights[inside]
    before = float(cumulated[bucket - 1]) if bucket else 0.0
    last = _reached(before + np.cumsum(weight, dtype=np.float64), wanted, side)
    return buckets, bucket, inside[: last + 1]


def _reached(cumulated: NDArray[np.float64], wanted: float, side: Literal["left", "right"]) -> int:
    """The first index at which the sum reaches what is wanted; one that adds to it."""
    first = int(np.searchsorted(cumulated, 0.0, side="right"))
    last = int(np.searchsorted(cumulated, float(cumulated[-1]), side="left"))
    return min(max(int(np.searchsorted(cumulated, wanted, side=side)), first), last)


def contenders(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Places, ascending, of the `count` largest values, of whatever equals the smallest of these, and seldom of many
    more. `count`: at least 1.

    The values are dealt into columns. So many columns have a largest value no smaller than the count-th of these: so
    at least `count` values are no smaller, and none of the `count` largest is left out.
    """
    height = len(values) // max(COLUMNS_A_VALUE * count, COLUMNS_MIN)
    if height < HEIGHT_MIN:
        return np.arange(len(values))
    columns = len(values) // height
    largest: NDArray[np.float32] = values[: height * columns].reshape(height, columns).max(axis=0)
    floor = np.partition(largest, columns - count)[columns - count]
    return np.flatnonzero(values >= floor)
