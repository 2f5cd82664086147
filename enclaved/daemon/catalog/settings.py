"""The table `[catalog]` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from enclaved.daemon.config import setting


@dataclass(frozen=True)
class CatalogSettings:
    """How models are looked for."""

    poll_seconds: float = setting(
        10.0,
        "Seconds between looks at folders of which the system does not tell all changes, such as network mounts.",
        minimum=0.1,
    )
