"""Lets the tests of this folder import its stand-ins, which pytest's importlib mode leaves to us."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_ins import close_stores


@pytest.fixture(autouse=True)
def _stores_end_with_their_test() -> Iterator[None]:
    yield
    close_stores()
