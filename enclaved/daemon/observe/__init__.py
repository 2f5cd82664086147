"""What the daemon tells about itself: its log, and events for subscribers. Nothing with a prompt gets in."""

from __future__ import annotations

from enclaved.daemon.observe.events import EventHub, Subscription
from enclaved.daemon.observe.log import LogSettings, open_log

__all__ = ["EventHub", "LogSettings", "Subscription", "open_log"]
