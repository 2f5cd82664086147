"""The share that is reached without sorting is the one that sorting finds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
from enclave_llama_cpp.sampling_mass import PIECE, contenders, place_at, until

# Sixteenths, powers of two as weights: sums are exact, so nothing hangs on the order in which they are made.
_KEYS = arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([number / 16 for number in range(1200)]))
_EXACT_WEIGHTS = [0.0, 0.25, 0.5, 1.0, 8.0]
_SIDES = st.sampled_from(["left", "right"])


def sorted_until(
    keys: NDArray[np.float32], weights: NDArray[np.float64], share: float, side: Literal["left", "right"]
) -> list[int]:
    order = np.argsort(keys, kind="stable").tolist()
    wanted, reached, last = share * weights.sum(), 0.0, 0
    for count, place in enumerate(order, start=1):
        reached += weights[place]
        last = count if weights[place] else last
        if weights[place] and (reached >= wanted if side == "left" else reached > wanted):
            return order[:count]
    return order[:last]


@given(_KEYS, st.data(), st.sampled_from([0.0, 0.125, 0.5, 0.9, 1.0]), _SIDES)
def test_the_places_up_to_a_share_are_those_that_sorting_finds(
    keys: NDArray[np.float32], data: st.DataObject, share: float, side: Literal["left", "right"]
) -> None:
    weights = data.draw(arrays(np.float64, len(keys), elements=st.sampled_from(_EXACT_WEIGHTS)))
    weights[data.draw(st.integers(0, len(keys) - 1))] = 4.0
    found = until(keys, share, side=side, weights=weights).tolist()
    expected = sorted_until(keys, weights, share, side)
    assert sorted(found) == sorted(expected)
    assert found[-1] == expected[-1]


def test_more_keys_than_are_counted_at_once_are_all_counted() -> None:
    keys = np.random.default_rng(2).normal(9, 3, 3 * PIECE + 5).clip(0).astype(np.float32)
    expected = sorted_until(keys, np.exp(-keys.astype(np.float64)), 0.9, "left")
    assert sorted(until(keys, 0.9, side="left").tolist()) == sorted(expected)


def test_keys_that_are_infinite_come_last_and_never_end_it() -> None:
    keys = np.array([np.inf, 2.0, 0.0, np.inf, 1e30], dtype=np.float32)
    assert until(keys, 1.0, side="right").tolist() == [2, 1]
    assert until(np.array([5.0, 5.0], dtype=np.float32), 0.0, side="left").tolist() == [0]


@given(
    arrays(np.float64, st.integers(1, 300), elements=st.floats(0, 100)),
    st.sampled_from([1e-9, 0.1, 1.0, 30.0, 1e9]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_a_larger_draw_never_falls_on_a_likelier_token(
    keys: NDArray[np.float64], temperature: float, one: float, other: float
) -> None:
    keys -= keys.min()
    ids = np.arange(len(keys), dtype=np.int32)[::-1].copy()
    low, high = (place_at(keys, ids, temperature, draw) for draw in sorted((one, other)))
    assert (keys[low], ids[low]) <= (keys[high], ids[high])


@given(
    st.sampled_from([1, 7, 300, 2047, 5000]),
    st.integers(1, 400),
    st.sampled_from([1, 3, 50, 10**6]),
    st.integers(0, 2**32 - 1),
)
def test_the_contenders_are_the_largest_with_all_that_equal_the_smallest_of_these(
    length: int, count: int, distinct: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, distinct, length).astype(np.float32)
    places = contenders(values, count).tolist()
    smallest = np.sort(values)[-min(count, length)]
    assert places == sorted(places)
    assert set(np.flatnonzero(values >= smallest).tolist()) <= set(places)


def test_the_contenders_among_many_are_few() -> None:
    values = np.random.default_rng(3).normal(0, 2, 32_000).astype(np.float32)
    for count in (1, 5, 40, 900):
        assert len(contenders(values, count)) <= 1.3 * count + 1
