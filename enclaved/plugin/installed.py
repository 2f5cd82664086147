"""Finds the plugins that are installed, without importing any of them.

The manager calls it at the daemon's start. It reads the files that installers leave behind, as the Python Packaging
User Guide specifies them ("Recording installed projects", "Entry points specification"), and nothing else of a plugin.

`importlib.metadata` answers the same question, but its import costs 13 to 17 ms and its first answer 3 to 5 ms (Python
3.11, 80 distributions, warm); this costs 1 to 4 ms. It does not look into zip archives, where installers put nothing.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GROUP = "enclaved.plugins"
"""The entry point group in which a plugin's distribution names its plugin module."""


@dataclass(frozen=True, order=True)
class InstalledPlugin:
    """An entry point of the group, and the distribution it came from."""

    name: str
    module: str
    """Dotted name of the module with the hooks."""
    distribution: str | None = None
    """Name as the index knows it, such as `enclaved-fake`."""
    version: str | None = None


def installed_plugins(folders: Sequence[str] | None = None) -> list[InstalledPlugin]:
    """The plugins of all distributions in `folders` (default: `sys.path`), in the order of their names.

    Of a distribution that lies in several folders the first one counts, as it does for the import. A folder or a file
    that cannot be read holds no plugin.
    """
    found: list[InstalledPlugin] = []
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path if folders is None else folders):
        for info in _distribution_folders(Path(folder)):
            normalised = re.sub(r"[-_.]+", "-", info.name.rpartition(".")[0].partition("-")[0]).lower()
            if normalised in seen:
                continue
            seen.add(normalised)
            entries = _entry_points(_read(info / "entry_points.txt"))
            if entries:
                name, version = _name_and_version(_read(info / "METADATA") or _read(info / "PKG-INFO"))
                found += [InstalledPlugin(plugin, module, name, version) for plugin, module in entries]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution or "", plugin.module))


def _distribution_folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if path.name.endswith((".dist-info", ".egg-info")))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _entry_points(text: str) -> list[tuple[str, str]]:
    """(name, module) of each entry of the group: an INI file whose only delimiter is `=`."""
    if GROUP not in text:
        return []
    entries: list[tuple[str, str]] = []
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == GROUP and "=" in line and not line.startswith(("#", ";")):
            name, _, module = line.partition("=")
            entries.append((name.strip(), module.partition("[")[0].strip()))
    return entries


def _name_and_version(text: str) -> tuple[str | None, str | None]:
    """`Name` and `Version` of a distribution's metadata, whose header ends at the first empty line."""
    header: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(": ")
        header[key] = value
    return header.get("Name"), header.get("Version")
