"""The heavy half of a plugin, found by its name. Only children import this."""

from __future__ import annotations

import importlib
from typing import Any


def load_attribute(path: str) -> Any:
    """The object behind `"package.module:attribute"`. Raises ImportError with a sentence when there is none."""
    module, _, attribute = path.partition(":")
    found = importlib.import_module(module)
    if not attribute or not hasattr(found, attribute):
        raise ImportError(f"the plugin names {path}, but {module} has no {attribute or 'attribute given'}")
    return getattr(found, attribute)
