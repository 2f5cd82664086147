"""Which models there are, and what a reference means."""

from __future__ import annotations

from enclaved.daemon.catalog.catalog import Catalog, OwnNames
from enclaved.daemon.catalog.files import FileIdentity, identity_of, open_model_file
from enclaved.daemon.catalog.headers import HeaderCache

__all__ = ["Catalog", "FileIdentity", "HeaderCache", "OwnNames", "identity_of", "open_model_file"]
