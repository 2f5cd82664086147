"""ZeroMQ: sessions, frames, streams, credit."""

from __future__ import annotations

from enclaved.daemon.broker.broker import Broker
from enclaved.daemon.broker.call import Call, Client
from enclaved.daemon.broker.reasons import refusal_of

__all__ = ["Broker", "Call", "Client", "refusal_of"]
