"""What is in the bodies of the methods about folders, typed as in bodies.py."""

from __future__ import annotations

from typing import Annotated

from enclave.protocol.codec import Bounds
from enclave.protocol.messages import REFERENCE_LENGTH_MAX, Count
from enclave.protocol.records import record


@record
class FolderInfo:
    """A folder in which models are found."""

    path: str
    source: str
    """The plugin that looks into it."""
    added: bool = False
    """Whether `folders.add` named it; else the configuration does, or a link in another folder leads there."""
    models: Count = 0
    """Models in it and in the folders below it."""
    problem: str | None = None
    """Why the system does not tell of all changes in it, so that it is looked at from time to time instead."""


@record
class FoldersResult:
    """The folders in which models are found."""

    folders: tuple[FolderInfo, ...] = ()


@record
class FolderParams:
    """One folder."""

    path: Annotated[str, Bounds(1, REFERENCE_LENGTH_MAX)]
    """Absolute."""
