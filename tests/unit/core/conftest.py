"""Lets the tests of this folder import its driver and its environment, which pytest's importlib mode leaves to us."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from core_driver import Core


@pytest.fixture
def core() -> Core:
    """A core with one device of 10 bytes and 4 cores."""
    return Core()
