"""The daemon's log: one line an event on stderr, which a client that starts the daemon points at the log file."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Literal

from enclaved.daemon.config import setting


@dataclass(frozen=True)
class LogSettings:
    """The table `[log]`."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "The least important lines that are kept.")


def open_log(settings: LogSettings) -> None:
    """Points the `enclaved` logger at stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("enclaved")
    logger.setLevel(settings.level.upper())
    logger.addHandler(handler)
    logger.propagate = False
