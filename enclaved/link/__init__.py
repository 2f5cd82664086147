"""The channel between the daemon and its children: framing and typed messages, the same code at both ends."""

from __future__ import annotations

LINK_VERSION = 4
"""A daemon only works with children of its own link version."""
