from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_folder.plugin import CHOICES_MAX, FolderSettings, FolderSource
from enclaved.plugin.hookspecs import SourceContext
from enclaved.plugin.manager import load_plugins
from enclaved.plugin.model import ModelEntry
from enclaved.testing import check_source


def context(*folders: Path | str) -> SourceContext:
    return SourceContext(Path("/nowhere"), FolderSettings(tuple(map(str, folders))))


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(*folders: Path | str) -> list[str]:
    return [entry.name for entry in FolderSource().models(context(*folders))]


def resolve(reference: str, *folders: Path | str) -> ModelEntry:
    entry = FolderSource().resolve(reference, context(*folders))
    assert entry is not None
    return entry


def test_the_source_keeps_the_rules_of_sources(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "b/a.gguf", "b/c.onnx", "d-00001-of-00002.gguf", "d-00002-of-00002.gguf", "ü (1).gguf")
    check_source(
        FolderSource,
        context(tmp_path),
        known=["folder:a.gguf", "folder:b/a", "folder:c", "folder:c.onnx", "folder:d", "folder:ü (1)"],
        missing=["folder:", "folder:a", "folder:z", "folder:b", "folder:../a.gguf", f"folder:{tmp_path}/a.gguf"],
        foreign=["a.gguf", "", "folder", str(tmp_path / "a.gguf"), "hf:folder:a"],
    )


def test_models_are_found_by_suffix_in_all_folders_below(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a.gguf",
        "deep/er/B.GGUF",
        "c.onnx",
        "readme.md",
        "model.gguf.part",
        "gguf",
        ".hidden.gguf",
        ".git/x.gguf",
    )
    assert names(tmp_path) == ["folder:a.gguf", "folder:c.onnx", "folder:deep/er/B.GGUF"]


def test_without_folders_there_is_nothing_and_the_error_says_how_to_add_one(tmp_path: Path) -> None:
    assert names() == []
    assert list(FolderSource().models(SourceContext(tmp_path))) == []
    with pytest.raises(LookupError, match="enclave folder add"):
        resolve("folder:a")


def test_added_folders_count_after_those_of_the_configuration(tmp_path: Path) -> None:
    for name in ("configured", "added"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.gguf").touch()
    settings = FolderSettings(folders=(str(tmp_path / "configured"),))
    context = SourceContext(tmp_path, settings, (tmp_path / "added", tmp_path / "configured"))
    assert [entry.name for entry in FolderSource().models(context)] == [
        "folder:same.gguf",
        f"folder:{tmp_path / 'added' / 'same.gguf'}",
    ]


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "models/a.gguf")
    for spelled in ("~/models", "models", tmp_path / "models"):
        assert [file.path for file in resolve("folder:a", spelled).files] == [str(tmp_path / "models" / "a.gguf")]
    assert names("~no-such-user-here/models", "~/models") == ["folder:a.gguf"]


def test_loops_of_links_end_and_links_are_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    put(inside, "z/a.gguf")
    put(outside, "b.gguf")
    inside.joinpath("z", "up").symlink_to(inside)
    inside.joinpath("self").symlink_to("self")
    inside.joinpath("round.gguf").symlink_to("round.gguf")
    inside.joinpath("broken.gguf").symlink_to(tmp_path / "missing")
    inside.joinpath("link").symlink_to(outside)
    inside.joinpath("file.gguf").symlink_to(outside / "b.gguf")
    inside.joinpath("again").symlink_to(inside / "z")
    assert names(inside) == ["folder:file.gguf", "folder:link/b.gguf", "folder:z/a.gguf"]


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "closed/b.gguf")
    tmp_path.joinpath("fold.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    tmp_path.joinpath(os.fsdecode(b"\xff.gguf")).write_bytes(b"x")
    tmp_path.joinpath("new\nline.gguf").write_bytes(b"x")
    tmp_path.joinpath("closed").chmod(0)
    try:
        expected = ["folder:a.gguf"] + (["folder:closed/b.gguf"] if os.access(tmp_path / "closed", os.R_OK) else [])
        assert names(tmp_path / "missing", tmp_path / "a.gguf", tmp_path) == expected
    finally:
        tmp_path.joinpath("closed").chmod(0o700)


def test_a_model_in_parts_is_one_model_and_an_incomplete_one_none(tmp_path: Path) -> None:
    put(tmp_path, *(f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)), "half-00001-of-00002.gguf")
    assert names(tmp_path) == ["folder:big-00001-of-00003.gguf"]
    entry = resolve("folder:big", tmp_path)
    assert [file.role for file in entry.files] == ["weights", "shard", "shard"]
    assert [file.name[4:9] for file in entry.files] == ["00001", "00002", "00003"]
    assert resolve("folder:big-00001-of-00003", tmp_path) == entry


def test_an_ambiguous_name_lists_the_choices(tmp_path: Path) -> None:
    put(tmp_path, "a/x.gguf", "b/x.gguf", "b/x.onnx", "x/y.gguf")
    with pytest.raises(LookupError) as caught:
        resolve("folder:x", tmp_path)
    assert "folder:a/x.gguf, folder:b/x.gguf, folder:b/x.onnx" in str(caught.value)
    assert resolve("folder:x.onnx", tmp_path).name == "folder:b/x.onnx"
    assert resolve("folder:a/x", tmp_path).name == "folder:a/x.gguf"


def test_a_long_list_of_choices_is_cut(tmp_path: Path) -> None:
    put(tmp_path, *(f"{index:02}/x.gguf" for index in range(CHOICES_MAX + 5)))
    with pytest.raises(LookupError, match="and 5 more"):
        resolve("folder:x", tmp_path)


def test_an_unknown_name_lists_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "mistral-7b-q4.gguf", "sub/llama-3b-q8.gguf")
    with pytest.raises(LookupError) as caught:
        resolve("folder:lama-3b", tmp_path)
    assert "the nearest: folder:sub/llama-3b-q8.gguf" in str(caught.value)
    with pytest.raises(LookupError, match="nor any other"):
        resolve("folder:a", tmp_path / "missing")


def test_two_folders_with_the_same_path_have_two_names(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    put(first, "a.gguf")
    put(second, "a.gguf", "b.gguf")
    assert names(first, second) == ["folder:a.gguf", f"folder:{second}/a.gguf", "folder:b.gguf"]
    assert names(first, second, first) == names(first, second)
    assert resolve(f"folder:{second}/a.gguf", first, second).files[0].path == str(second / "a.gguf")


def test_a_folder_inside_another_is_searched_once(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "in/b.gguf")
    assert names(tmp_path, tmp_path / "in") == ["folder:a.gguf", "folder:in/b.gguf"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from([f"{d}{n}{s}" for d in ("", "p/", "p/q/") for n in "ab" for s in (".gguf", ".onnx")])))
def test_every_listed_name_resolves_to_itself_and_every_short_one_to_its_model_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, files: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("models")
    put(folder, *files)
    assert names(folder) == sorted(f"folder:{file}" for file in files)
    for file in files:
        assert resolve(f"folder:{file}", folder).files[0].path == str(folder / file)
        name = Path(file).name
        if sum(Path(other).name == name for other in files) == 1:
            assert resolve(f"folder:{name}", folder).name == f"folder:{file}"
        elif file != name and name not in files:
            with pytest.raises(LookupError, match="could be any of"):
                resolve(f"folder:{name}", folder)


def test_the_plugin_loads_with_its_settings() -> None:
    plugins = load_plugins(only=["folder"])
    assert [(line.state, line.kinds) for line in plugins.lines] == [("ready", ("source",))]
    assert plugins.settings["folder"].settings is FolderSettings


def test_looking_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "b/c.gguf")
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    names(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_the_light_half_imports_nothing_heavy() -> None:
    script = "import sys, enclave_folder.plugin; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numpy", "asyncio", "sqlite3", "difflib"} & set(loaded)
