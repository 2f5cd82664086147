"""Which routing ids ZeroMQ gave out itself. Pure.

A ROUTER numbers its peers: a zero byte and a counter of 32 bits, which begins anywhere. But a peer may claim an id of
its own when it connects, also one of that form. So ids are believed that lie a little behind the first one.
"""

from __future__ import annotations

import struct

_AUTOMATIC = struct.Struct(">xI")
SILENT_MAX = 65_536
"""Connections that may come and go between two that say something. Who guesses an id hits this window once in 65,536
times, and then has a session of its own under it."""


class RoutingIds:
    """Knows the first id that was given out, and how far the counter was seen."""

    def __init__(self, first: bytes) -> None:
        (self._first,) = _AUTOMATIC.unpack(first)
        self._seen = 0

    def gave(self, routing_id: bytes) -> bool:
        """Whether the id is one that was given out, as far as can be told."""
        if len(routing_id) != _AUTOMATIC.size or routing_id[0] != 0:
            return False
        (number,) = _AUTOMATIC.unpack(routing_id)
        given = (number - self._first) % 2**32
        if not 1 <= given <= self._seen + SILENT_MAX:
            return False
        self._seen = max(self._seen, given)
        return True
