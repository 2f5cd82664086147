"""Which instance will do for which wish."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_driver import a_need
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.events import Wish
from enclaved.core.placement import serves, suits

HAVE = a_need(context=4096, sequences=2, kv_type="f16", flash_attention=True)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish(context=4096),
        Wish(context=1),
        Wish(sequences=2),
        Wish(sequences=1),
        Wish(kv_type="f16"),
        Wish(flash_attention=True),
        Wish(threads=64),
    ],
)
def test_a_wish_that_the_instance_fulfils_is_served(wish: Wish) -> None:
    assert serves(HAVE, wish)


@pytest.mark.parametrize(
    "wish", [Wish(context=4097), Wish(sequences=3), Wish(kv_type="q8_0"), Wish(flash_attention=False)]
)
def test_a_larger_or_other_wish_is_not_served(wish: Wish) -> None:
    assert not serves(HAVE, wish)
    assert not suits(HAVE, replace(HAVE, context=9999), wish)


@given(
    wish=st.builds(
        Wish,
        context=st.none() | st.integers(1, 9000),
        sequences=st.none() | st.integers(1, 4),
        kv_type=st.none() | st.sampled_from(["f16", "q8_0"]),
        flash_attention=st.none() | st.booleans(),
    ),
    bytes_estimated=st.integers(0, 100),
)
def test_what_was_loaded_for_a_request_suits_it_whatever_it_wished(wish: Wish, bytes_estimated: int) -> None:
    assert suits(replace(HAVE, bytes_estimated=bytes_estimated), HAVE, wish)
