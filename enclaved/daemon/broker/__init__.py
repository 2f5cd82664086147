"""ZeroMQ: sessions, frames, streams, credit."""

from __future__ import annotations

from enclaved.daemon.broker.broker import Broker
from enclaved.daemon.broker.call import Call
from enclaved.daemon.broker.client import Client
from enclaved.daemon.broker.reasons import refusal_of
from enclaved.daemon.broker.settings import BrokerSettings

__all__ = ["Broker", "BrokerSettings", "Call", "Client", "refusal_of"]
