"""Checks a source against the rules that the daemon's catalog relies on.

A source's author calls `check_source` from a test, with references that it must know, must not know, and must leave to
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enclaved.plugin.hookspecs import Source, SourceContext
from enclaved.plugin.model import ModelEntry


def check_source(
    make_source: Callable[[], Source],
    context: SourceContext,
    *,
    known: Sequence[str],
    missing: Sequence[str] = (),
    foreign: Sequence[str] = ("", "nobody:knows", "nobody:knows:this", "/no/such/file.bin"),
) -> None:
    """Checks all rules. Raises AssertionError, with the rule broken.

    `known`: references that name a model; `missing`: references of this source that name nothing; `foreign`: references
    that are another source's matter.
    """
    source = make_source()
    entries = list(source.models(context))
    for entry in entries:
        _check_entry(entry, source)
    names = [entry.name for entry in entries]
    _demand(len(names) == len(set(names)), f"a name is listed twice: {names}")
    _demand(list(source.models(context)) == entries, "models() lists something else the second time")
    _demand(list(make_source().models(context)) == entries, "another object of this source lists other models")
    for entry in entries:
        resolved = _resolve(source, entry.name, context)
        _demand(resolved == entry, f"the listed name {entry.name} resolves to {resolved}, listed was {entry}")
    _check_watched(source, context, entries)
    for reference in known:
        entry = _resolve(source, reference, context)
        if entry is None:
            raise AssertionError(f"the reference {reference!r} is not taken for this source's own")
        _check_entry(entry, source)
        again = _resolve(source, entry.name, context)
        _demand(again == entry, f"{reference!r} is called {entry.name}, but that name resolves to {again}")
    for reference in missing:
        try:
            found = source.resolve(reference, context)
        except LookupError as error:
            _demand(bool(str(error).strip("' ")), f"the LookupError for {reference!r} says nothing")
        else:
            raise AssertionError(f"{reference!r} names nothing and must raise LookupError, but gave {found}")
    for reference in foreign:
        found = _resolve(source, reference, context)
        _demand(found is None, f"{reference!r} is not this source's matter, but gave {found}")


def _check_watched(source: Source, context: SourceContext, entries: Sequence[ModelEntry]) -> None:
    """The folders a source wants to be watched, and the references that are answered from its list then."""
    folders = source.watched(context)
    if folders is None:
        _demand(not any(entry.also for entry in entries), "`also` has no effect for a source that is not watched")
        return
    for folder in folders:
        _demand(folder.path.is_absolute(), f"the watched folder {folder.path} is not absolute")
    called = [reference for entry in entries for reference in {entry.name, *entry.also}]
    for entry in entries:
        for reference in entry.also:
            if called.count(reference) == 1:
                resolved = _resolve(source, reference, context)
                _demand(resolved == entry, f"{entry.name} is also called {reference}, which resolves to {resolved}")


def _resolve(source: Source, reference: str, context: SourceContext) -> ModelEntry | None:
    try:
        return source.resolve(reference, context)
    except LookupError as error:
        raise AssertionError(f"the reference {reference!r} raised LookupError: {error}") from error


def _check_entry(entry: Any, source: Source) -> None:
    if not isinstance(entry, ModelEntry):
        raise AssertionError(f"{entry!r} is no ModelEntry")
    _demand(entry.source == source.name, f"{entry.name} says source {entry.source}, the source is {source.name}")
    _demand(bool(entry.name) and entry.name.isprintable(), f"the name {entry.name!r} cannot be printed")
    for file in entry.files:
        _demand(Path(file.path).is_absolute(), f"{entry.name}: the path {file.path} is not absolute")
        _demand(Path(file.path).is_file(), f"{entry.name}: there is no file {file.path}")
    if entry.files:
        _demand(entry.files[0].role == "weights", f"{entry.name}: the first file is {entry.files[0].role}, not weights")
    else:
        _demand(entry.header is not None and bool(entry.backends), f"{entry.name}: no file, so header and backends")


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
