"""From a `Load` message and its descriptors to an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

from enclaved.link.messages import FromChild, Load, LoadProgress
from enclaved.plugin.engine import Engine, LoadError, LoadRequest, OpenFile, Placement
from enclaved.plugin.model import FileRole, ModelHeader
from enclaved.plugin.plain import from_plain
from enclaved.worker.heavy import load_attribute

PROGRESS_STEP = 0.01
"""A hundred messages tell a load's progress finely enough for any bar."""


def load_engine(job: Load, descriptors: Sequence[int], send: Callable[[FromChild], None]) -> Engine:
    """Loads the model, telling its progress, and closes the descriptors. Raises LoadError and ImportError."""
    told = 0.0

    def progress(fraction: float) -> bool:
        nonlocal told
        if fraction - told >= PROGRESS_STEP:
            told = fraction
            send(LoadProgress(fraction))
        return True

    try:
        request = LoadRequest(
            model=job.model,
            files=[
                OpenFile(cast("FileRole", role), str(name), descriptor, int(size))
                for (role, name, size), descriptor in zip(job.files, descriptors, strict=True)
            ],
            header=from_plain(ModelHeader, job.header),
            placement=from_plain(Placement, job.placement),
            settings=job.settings,
        )
        engine: type[Engine] = load_attribute(job.engine)
        return engine.load(request, progress)
    except ValueError as error:
        raise LoadError(f"the daemon's load message is wrong: {error}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
