"""Reads `requirements.lock`, and collects what `make lock` has to pin. Pure: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", re.ASCII)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it (PyPA's name normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The normalized name that a requirement begins with. Raises ValueError if it begins with none."""
    match = _NAME.match(requirement.strip())
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return normalized(match.group())


def stanzas(text: str) -> list[tuple[str, str]]:
    """(normalized name, its lines with the hashes) of each pin, in order; a name may have several, by marker."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        match = _PIN.match(line)
        if match is not None:
            found.append((normalized(match.group(1)), [line]))
        elif found and line[:1].isspace() and line.strip():
            found[-1][1].append(line)
    return [(name, "\n".join(lines) + "\n") for name, lines in found]


def subset(text: str, wanted: Callable[[str], bool]) -> str:
    """The pins, hashes and all, of the packages whose normalized name is `wanted`."""
    return "".join(stanza for name, stanza in stanzas(text) if wanted(name))


def surplus(installed: Iterable[str], text: str, own: Iterable[str]) -> list[str]:
    """Which installed packages neither the lock `text` nor the workspace (`own`) asks for."""
    kept = {name for name, _ in stanzas(text)} | {normalized(name) for name in own} | {"pip", "setuptools"}
    return sorted(name for name in map(normalized, installed) if name not in kept)


def to_pin(projects: Iterable[Mapping[str, Any]]) -> list[str]:
    """All requirements of the workspace on others, dependency groups too, from its parsed `pyproject.toml` files."""
    projects = list(projects)
    own = {normalized(project["project"]["name"]) for project in projects}
    wanted: set[str] = set()
    for project in projects:
        wanted.update(project["project"].get("dependencies", []))
        for extra in project["project"].get("optional-dependencies", {}).values():
            wanted.update(extra)
        for group in project.get("dependency-groups", {}).values():
            wanted.update(group)
    return sorted(requirement for requirement in wanted if name_of(requirement) not in own)
