"""The source `folder`: models that lie in folders which the user added, or named in the configuration.

    [plugins.folder]
    folders = ["~/models"]

A model's name is `folder:` and its path below the folder, which stays the same whatever else comes to lie there; a
reference may be shorter where it is clear. Nothing in the folders is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from enclave_folder.scan import FoundModel, find_models
from enclaved.plugin.hookspecs import PluginSettings, Source, SourceContext, WatchedFolder, hookimpl
from enclaved.plugin.model import ModelEntry, ModelFile, ModelName

ENCLAVE_API_VERSION = 1

CHOICES_MAX = 10
"""Names that an error lists: enough to choose from, few enough to read."""

_PREFIX = "folder:"


@dataclass(frozen=True)
class FolderSettings:
    """The table `[plugins.folder]`."""

    folders: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Folders with model files, searched with all folders below; ~ is your home folder."},
    )


class FolderSource(Source):
    """Offers the model files in the configured folders."""

    name = "folder"
    takes_folders = True

    def __init__(self) -> None:
        self._linked: Mapping[Path, bool] = {}
        """Folders to which links led when the models were listed last, and whether all below them counts."""

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        linked: dict[Path, bool] = {}
        entries = [self._entry(name, model) for name, model in _named_models(context, linked).items()]
        self._linked = linked
        return entries

    def watched(self, context: SourceContext) -> Sequence[WatchedFolder]:
        folders = _folders(context)
        inside = {folder.resolve() for folder in folders}
        elsewhere = [
            WatchedFolder(path, deep)
            for path, deep in sorted(self._linked.items())
            if inside.isdisjoint((path, *path.parents))
        ]
        return [*map(WatchedFolder, folders), *elsewhere]

    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        """The model that `folder:NAME` means: NAME is a path below a folder, a file name, or one without its suffix.

        Raises LookupError with the choices when several models have the name, with the nearest names when none has.
        """
        if not reference.startswith(_PREFIX):
            return None
        wanted = reference.removeprefix(_PREFIX)
        models = _named_models(context)
        if reference in models:
            return self._entry(reference, models[reference])
        matching = [name for name, model in models.items() if wanted in model.short_names]
        if len(matching) == 1:
            return self._entry(matching[0], models[matching[0]])
        if matching:
            raise LookupError(f"{reference} could be any of {_listed(matching)}; write one of them")
        raise LookupError(_nothing_found(wanted, models, _folders(context)))

    def _entry(self, name: str, model: FoundModel) -> ModelEntry:
        first, *others = map(str, model.files)
        return ModelEntry(
            name=ModelName(name),
            source=self.name,
            files=(ModelFile("weights", first), *(ModelFile("shard", path) for path in others)),
            also=tuple(_PREFIX + short for short in model.short_names if _PREFIX + short != name),
        )


def _folders(context: SourceContext) -> list[Path]:
    """The folders of the configuration and then those that were added, absolute; a relative one is taken from the home
    folder, `~name` from that user's."""
    settings = context.settings if isinstance(context.settings, FolderSettings) else FolderSettings()
    folders: list[Path] = []
    for text in settings.folders:
        try:
            folders.append(Path.home() / Path(text).expanduser())
        except RuntimeError:  # there is no such user, so no such folder
            continue
    return list(dict.fromkeys([*folders, *context.folders]))


def _named_models(context: SourceContext, linked: dict[Path, bool] | None = None) -> dict[str, FoundModel]:
    """Models by name. Where two folders hold the same path, the first folder's has it and the other's is whole."""
    named: dict[str, FoundModel] = {}
    for model in find_models(_folders(context), linked):
        name = _PREFIX + model.relative
        named[name if name not in named else _PREFIX + str(model.files[0])] = model
    return named


def _nothing_found(wanted: str, models: dict[str, FoundModel], folders: Sequence[Path]) -> str:
    if not folders:
        return f"there is no folder to look for {wanted!r} in; `enclave folder add PATH` adds one"
    if not models:
        return f"there is no model {wanted!r}, nor any other, in {_listed([str(folder) for folder in folders])}"
    from difflib import get_close_matches

    names = {short: name for name, model in models.items() for short in (model.relative, model.file_name, model.stem)}
    near = dict.fromkeys(names[short] for short in get_close_matches(wanted, names, n=3, cutoff=0.3))
    return f"there is no model {wanted!r} in the folders; the nearest: {_listed(list(near) or sorted(models))}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - CHOICES_MAX} more" if len(names) > CHOICES_MAX else ""
    return ", ".join(names[:CHOICES_MAX]) + more


@hookimpl
def enclave_sources() -> list[Source]:
    return [FolderSource()]


@hookimpl
def enclave_settings() -> list[PluginSettings]:
    return [PluginSettings("folder", FolderSettings)]
