"""Enclave's daemon: one process per user that owns the local models and the hardware."""

from __future__ import annotations

__version__ = "0.1.0"
