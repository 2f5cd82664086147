"""What the daemon tells about itself: its log. Nothing with a prompt gets in."""

from __future__ import annotations

from enclaved.daemon.observe.log import LogSettings, open_log

__all__ = ["LogSettings", "open_log"]
