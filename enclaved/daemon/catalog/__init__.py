"""Which models there are, and what a reference means."""

from __future__ import annotations

from enclaved.daemon.catalog.catalog import Catalog, OwnNames, Page
from enclaved.daemon.catalog.files import FileIdentity, identity_of, open_model_file
from enclaved.daemon.catalog.folders import Folder, Folders
from enclaved.daemon.catalog.headers import HeaderCache
from enclaved.daemon.catalog.looking import Looker
from enclaved.daemon.catalog.records import Changes, Line
from enclaved.daemon.catalog.settings import CatalogSettings
from enclaved.daemon.catalog.store import Store

__all__ = [
    "Catalog",
    "CatalogSettings",
    "Changes",
    "FileIdentity",
    "Folder",
    "Folders",
    "HeaderCache",
    "Line",
    "Looker",
    "OwnNames",
    "Page",
    "Store",
    "identity_of",
    "open_model_file",
]
