"""How a caller names a model, and what of it the daemon is told; both clients ask here. Touches no file."""

from __future__ import annotations

import os
from typing import overload

ModelName = str | os.PathLike[str]
"""A reference as the daemon knows it, or the path of a file, which is taken from the current folder."""


@overload
def named(model: ModelName) -> str: ...
@overload
def named(model: ModelName | None) -> str | None: ...
def named(model: ModelName | None) -> str | None:
    """The reference to send. The daemon lives in a folder of its own, so a path is made absolute here; text stays."""
    return os.path.abspath(model) if isinstance(model, os.PathLike) else model  # noqa: PTH100 - a link keeps its name


def absolute(path: str | os.PathLike[str]) -> str:
    """A path as the daemon understands it, which does not know this process's folder. Links keep their names."""
    return os.path.abspath(path)  # noqa: PTH100  resolve() would follow them
