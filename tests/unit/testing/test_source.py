"""The kit for sources must catch what it promises to catch: each source here breaks one rule."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclaved.plugin.hookspecs import Source, SourceContext, WatchedFolder
from enclaved.plugin.model import ModelEntry, ModelFile, ModelHeader, ModelName
from enclaved.testing import check_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class GoodSource(Source):
    """One model with a file, one without."""

    name = "good"

    def entries(self, context: SourceContext) -> list[ModelEntry]:
        path = context.data_folder / "model.gguf"
        path.write_bytes(b"x")
        header = ModelHeader(format="fake", architecture="fake")
        return [
            ModelEntry(ModelName("good:file"), self.name, (ModelFile("weights", str(path)),)),
            ModelEntry(ModelName("good:none"), self.name, (), ("fake",), header),
        ]

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        return self.entries(context)

    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        if not reference.startswith("good:"):
            return None
        for entry in self.entries(context):
            if entry.name == reference or (reference == "good:f" and entry.files):
                return entry
        raise LookupError(f"there is no {reference}")


class ListsTwice(GoodSource):
    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        return self.entries(context) * 2


class ListsUnstably(GoodSource):
    calls = itertools.count()

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        return self.entries(context)[next(self.calls) % 2 :]


class ListsWhatItCannotResolve(GoodSource):
    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        return [dataclasses.replace(entry, name=ModelName(entry.name + "x")) for entry in self.entries(context)]


class SpeaksForAnother(GoodSource):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        return [dataclasses.replace(entry, source="other") for entry in super().entries(context)]


class PointsNowhere(GoodSource):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        missing = (ModelFile("weights", str(context.data_folder / "missing")),)
        return [dataclasses.replace(entry, files=missing) for entry in super().entries(context)]


class PointsRelatively(GoodSource):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        return [
            dataclasses.replace(entry, files=(ModelFile("weights", "model.gguf"),))
            for entry in super().entries(context)
        ]


class BeginsWithATokenizer(GoodSource):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        first, second = super().entries(context)
        return [dataclasses.replace(first, files=(ModelFile("tokenizer", first.files[0].path),)), second]


class HasNeitherFileNorHeader(GoodSource):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        return [dataclasses.replace(entry, header=None) for entry in super().entries(context)]


class LeavesItsOwnToOthers(GoodSource):
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        return None if reference == "good:f" else super().resolve(reference, context)


class TakesWhatIsNotItsOwn(GoodSource):
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        return super().resolve("good:file" if ":" in reference and "good:" not in reference else reference, context)


class AnswersForTheMissing(GoodSource):
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        return super().resolve("good:file" if reference == "good:missing" else reference, context)


class SaysNothing(GoodSource):
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        try:
            return super().resolve(reference, context)
        except LookupError:
            raise LookupError from None


class RaisesForItsOwn(GoodSource):
    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        return super().resolve(reference + "x" if reference == "good:f" else reference, context)


class IsWatched(GoodSource):
    """Keeps the rules, and is watched."""

    def entries(self, context: SourceContext) -> list[ModelEntry]:
        first, second = super().entries(context)
        return [
            dataclasses.replace(first, also=("good:f", "good:both")),
            dataclasses.replace(second, also=("good:both",)),
        ]

    def watched(self, context: SourceContext) -> Sequence[WatchedFolder] | None:
        return [WatchedFolder(context.data_folder)]


class IsCalledMoreButNotWatched(IsWatched):
    def watched(self, context: SourceContext) -> None:
        return None


class WatchesARelativeFolder(IsWatched):
    def watched(self, context: SourceContext) -> Sequence[WatchedFolder]:
        return [WatchedFolder(Path("models"))]


class IsCalledWhatMeansAnother(IsWatched):
    def entries(self, context: SourceContext) -> list[ModelEntry]:
        first, second = super().entries(context)
        return [dataclasses.replace(first, also=()), dataclasses.replace(second, also=("good:f",))]


def check(source: Callable[[], Source], folder: Path) -> None:
    check_source(
        source, SourceContext(folder), known=["good:f", "good:none"], missing=["good:missing"], foreign=["other:model"]
    )


@pytest.mark.parametrize("source", [GoodSource, IsWatched])
def test_a_source_that_keeps_the_rules_passes(source: Callable[[], Source], tmp_path: Path) -> None:
    check(source, tmp_path)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (ListsTwice, "a name is listed twice"),
        (ListsUnstably, "something else the second time"),
        (ListsWhatItCannotResolve, "raised LookupError"),
        (SpeaksForAnother, "says source other"),
        (PointsNowhere, "there is no file"),
        (PointsRelatively, "is not absolute"),
        (BeginsWithATokenizer, "not weights"),
        (HasNeitherFileNorHeader, "no file, so header"),
        (LeavesItsOwnToOthers, "not taken for this source's own"),
        (TakesWhatIsNotItsOwn, "is not this source's matter"),
        (AnswersForTheMissing, "must raise LookupError"),
        (SaysNothing, "says nothing"),
        (RaisesForItsOwn, "'good:f' raised LookupError"),
        (IsCalledMoreButNotWatched, "not watched"),
        (WatchesARelativeFolder, "is not absolute"),
        (IsCalledWhatMeansAnother, "also called good:f"),
    ],
)
def test_a_broken_rule_is_named(broken: Callable[[], Source], words: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        check(broken, tmp_path)
    assert words in str(caught.value)
