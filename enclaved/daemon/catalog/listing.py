"""What a source lists, with what the disk says of it, and what that changes. All of it runs in threads, since there may
be ten thousand files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from enclave.protocol.messages import REFERENCE_LENGTH_MAX
from enclaved.daemon.catalog.arrivals import QUIET_SECONDS, Arrival, HeaderState, Verdict, verdict
from enclaved.daemon.catalog.files import FileIdentity, is_being_written
from enclaved.daemon.catalog.records import Listed
from enclaved.plugin.hookspecs import Source, SourceContext
from enclaved.plugin.model import ModelEntry


class Found(NamedTuple):
    """An entry with what the disk says of its files; what cannot be looked at counts nothing."""

    entry: ModelEntry
    size_bytes: int
    identities: tuple[FileIdentity | None, ...]
    """Of each file."""
    is_being_written: bool | None
    """None where the system does not say of some file."""

    @property
    def first(self) -> FileIdentity | None:
        """The file with the header."""
        return self.identities[0] if self.identities else None

    @property
    def listed(self) -> Listed:
        """As the store keeps it."""
        return Listed(self.entry, self.size_bytes, None if self.first is None else str(self.first))


@dataclass
class Listing:
    """What of a source may be offered, and how that differs from before."""

    offered: dict[str, Found] = field(default_factory=dict[str, Found])
    """By name; what had the name of one whose header is about to be read keeps it meanwhile."""
    different: list[Listed] = field(default_factory=list[Listed])
    gone: list[str] = field(default_factory=list[str])
    urgent: dict[FileIdentity, Found] = field(default_factory=dict[FileIdentity, Found])
    """Models that are offered only when their headers have been read."""
    unread: dict[FileIdentity, Found] = field(default_factory=dict[FileIdentity, Found])
    """Models that are offered, whose headers are to be read as well."""
    whole: set[FileIdentity] = field(default_factory=set[FileIdentity])
    """Files that nobody writes, as far as can be told."""
    again_seconds: float = float("inf")
    """When to look again by itself."""


def find(source: Source, context: SourceContext, whole: set[FileIdentity] | None) -> list[Found]:
    """What a source lists. With `whole`, files not in it are looked at for whether somebody writes them."""
    return [_found(entry, whole) for entry in source.models(context) if _can_be_told(entry)]


def sort_out(
    found: Sequence[Found],
    before: Mapping[str, Found],
    header_of: Callable[[FileIdentity, ModelEntry], HeaderState],
    known: Set[FileIdentity],
    now: float,
) -> Listing:
    """What may be offered of a watched source, when `before` was. `known`: files whose headers are going to be read, or
    could not be."""
    listing = Listing()
    for each in found:
        name = each.entry.name
        first = each.first
        header = header_of(first, each.entry) if first is not None else "none"
        said = _verdict(each, header, now)
        is_quiet = each.is_being_written is None and _age_seconds(each, now) >= QUIET_SECONDS
        if each.is_being_written is False or is_quiet:
            listing.whole.update(identity for identity in each.identities if identity is not None)
        if said.again_seconds is not None:
            listing.again_seconds = min(listing.again_seconds, said.again_seconds)
        if said.is_offered:
            listing.offered[name] = each
        if first is not None and header == "unread" and each.is_being_written is not True:
            if first not in known:
                (listing.unread if said.is_offered else listing.urgent)[first] = each
            if not said.is_offered and name in before:
                listing.offered[name] = before[name]
    return compared(listing, before)


def compared(listing: Listing, before: Mapping[str, Found]) -> Listing:
    """The listing with what is different from before."""
    listing.different = [each.listed for name, each in listing.offered.items() if before.get(name) != each]
    listing.gone = [name for name in before if name not in listing.offered]
    return listing


def _found(entry: ModelEntry, whole: set[FileIdentity] | None) -> Found:
    size_bytes = 0
    identities: list[FileIdentity | None] = []
    is_written: bool | None = False
    for file in entry.files:
        identity: FileIdentity | None = None
        with suppress(OSError, ValueError):
            identity = FileIdentity.of(os.stat(file.path))  # noqa: PTH116 - ten thousand times
            size_bytes += identity.size_bytes
        identities.append(identity)
        if whole is not None and identity is not None and identity not in whole and is_written is not True:
            found = is_being_written(file.path)
            is_written = is_written if found is False else found
    return Found(entry, size_bytes, tuple(identities), is_written)


def _verdict(found: Found, header: HeaderState, now: float) -> Verdict:
    """Whether a model may be offered; never one of which a file cannot be looked at."""
    if None in found.identities:
        return Verdict(False)
    return verdict(Arrival(found.is_being_written, _age_seconds(found, now), header))


def _age_seconds(found: Found, now: float) -> float:
    """Since the last of a model's files was changed."""
    return now - max((identity.modified_ns / 1e9 for identity in found.identities if identity is not None), default=now)


def _can_be_told(entry: ModelEntry) -> bool:
    """Whether a client could name it: a file's name need not be Unicode, and a path may be long."""
    try:
        for text in (entry.name, *(file.path for file in entry.files)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return len(entry.name) <= REFERENCE_LENGTH_MAX


def identities_of(found: Iterable[Found]) -> set[FileIdentity]:
    """The files with the headers."""
    return {each.first for each in found if each.first is not None}
