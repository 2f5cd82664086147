"""For authors of plugins: plain functions that check a plugin against the contract, without any test framework."""

from __future__ import annotations

from enclaved.testing.backend import Skipped, check_backend
from enclaved.testing.source import check_source

__all__ = ["Skipped", "check_backend", "check_source"]
