"""What a reference is before anybody looks for its model: an alias, a path, or a name. Pure but for home folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.model import ModelEntry, ModelFile, ModelName

ALIASES_DEEP = 8
"""An alias may name an alias; so many times, so that a circle ends."""

PATH_SOURCE = "path"
"""What `ModelEntry.source` says of a file that was named by its path."""


def without_alias(reference: str, aliases: Mapping[str, str]) -> str:
    """What a reference stands for in the end, `~` written out. Raises RefusalError (`bad_reference`)."""
    for _ in range(ALIASES_DEEP):
        if aliases.get(reference, reference) == reference:
            return _expanded(reference) if reference.startswith("~") else reference
        reference = aliases[reference]
    raise RefusalError("bad_reference", f"the alias {reference} leads back to itself")


def looks_like_a_path(reference: str) -> bool:
    """Whether a reference names a file by its path rather than a model by its name."""
    source, colon, _ = reference.partition(":")
    if colon and source.isidentifier():
        return False
    return "/" in reference or reference.startswith((".", "~"))


def entry_of_path(path: str) -> ModelEntry:
    """A model that is named by its file. Raises RefusalError (`bad_reference`)."""
    path = whole_path(path, "bad_reference")
    return ModelEntry(ModelName(path), PATH_SOURCE, (ModelFile("weights", path),))


def whole_path(path: str, code: str, field: str | None = None) -> str:
    """An absolute path without `.` and `..`. Raises RefusalError (`code`, about `field`) for a relative one."""
    if not Path(path).is_absolute():
        raise RefusalError(
            code,
            f"{path} is a relative path, and the daemon does not know relative to what",
            hint="Give the whole path, from /.",
            field=field,
        )
    return os.path.normpath(path)


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise RefusalError("bad_reference", f"{path}: there is no such home folder") from error
