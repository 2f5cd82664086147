"""Finds the model files in folders, and groups the parts of those that come in several.

The source calls it in a thread. It only looks: nothing is changed, and no file is opened.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".gguf", ".onnx")
"""How the name of a model file ends, in small letters or capitals."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
"""How llama.cpp's `gguf-split` names the parts of a model."""


@dataclass(frozen=True)
class FoundModel:
    """A model in one of the folders."""

    folder: Path
    files: tuple[Path, ...]
    """Its parts in their order; most models have one."""

    @property
    def relative(self) -> str:
        """Path of the first file below the folder, with `/` on every platform."""
        return self.files[0].relative_to(self.folder).as_posix()

    @property
    def file_name(self) -> str:
        return self.files[0].name

    @property
    def stem(self) -> str:
        """The file name without its suffix, and without the number of its first part."""
        shard = _SHARD.fullmatch(self.file_name)
        return shard["stem"] if shard else self.files[0].stem

    @property
    def short_names(self) -> list[str]:
        """What it may be called where that is clear."""
        names = (self.file_name, self.stem, self.files[0].stem, self.relative.rpartition(".")[0])
        return list(dict.fromkeys(names))


def find_models(folders: Sequence[Path], linked: dict[Path, bool] | None = None) -> list[FoundModel]:
    """The models below the folders: folder by folder as given, in each by relative path. To `linked` are added the
    folders to which links lead, and whether they lead to the folder itself rather than to a file in it.

    Links are followed, a folder that was already seen is not entered again. What cannot be read, hidden files and
    folders, names that cannot be printed (so also those that are no UTF-8) and models of which a part is missing are
    left out.
    """
    seen: set[tuple[int, int]] = set()
    models: list[FoundModel] = []
    for folder in folders:
        found = [model for files in _folders_below(folder, seen, linked) for model in _models(folder, files)]
        models += sorted(found, key=lambda model: model.relative)
    return models


def _folders_below(folder: Path, seen: set[tuple[int, int]], linked: dict[Path, bool] | None) -> Iterator[list[Path]]:
    """The model files of this folder and of each below it, one list a folder.

    Folders go before links to folders, so that a model's path is the one without links where there is one.
    """
    waiting = deque([folder])
    while waiting:
        current = waiting.pop()
        try:
            status = current.stat()
            with os.scandir(current) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(".") and entry.name.isprintable()]
        except OSError:
            continue
        # Invariant: a folder enters `seen` before anything below it waits, so no loop of links goes round twice.
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            continue
        seen.add(identity)
        files: list[Path] = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                if entry.is_dir():
                    if linked is not None and entry.is_symlink():
                        linked[(current / entry.name).resolve()] = True
                    (waiting.appendleft if entry.is_symlink() else waiting.append)(current / entry.name)
                elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    if linked is not None and entry.is_symlink():
                        linked.setdefault((current / entry.name).resolve().parent, False)
                    files.append(current / entry.name)
            except OSError:  # a link that leads round in a circle
                continue
        yield files


def _models(folder: Path, files: list[Path]) -> Iterator[FoundModel]:
    """The models among the model files of one folder."""
    present = {file.name: file for file in files}
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        if shard is None:
            yield FoundModel(folder, (file,))
        elif int(shard["number"]) == 1:
            count = int(shard["count"])
            names = (f"{shard['stem']}-{n:05}-of-{count:05}{shard['suffix']}" for n in range(1, count + 1))
            parts = [present[name] for name in names if name in present]
            if len(parts) == count:
                yield FoundModel(folder, tuple(parts))
