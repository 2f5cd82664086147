from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from enclaved.plugin.installed import GROUP, InstalledPlugin, installed_plugins

if TYPE_CHECKING:
    from pathlib import Path


def distribution(
    folder: Path, name: str, entry_points: str, *, version: str = "1.2", suffix: str = "dist-info"
) -> Path:
    info = folder / f"{name}-{version}.{suffix}"
    info.mkdir(parents=True)
    info.joinpath("entry_points.txt").write_text(entry_points, encoding="utf-8")
    info.joinpath("METADATA").write_text(
        f"Name: {name}\nVersion: {version}\n\nVersion: of the text\n", encoding="utf-8"
    )
    return info


def test_only_the_entries_of_our_group_are_plugins(tmp_path: Path) -> None:
    distribution(
        tmp_path,
        "a_plugin",
        "[console_scripts]\nrun = a.main:run\n\n"
        "[enclaved.plugins]\n# a comment\nb = a.b\na=a.a [extra]\n[other]\nc = a.c\n",
    )
    distribution(tmp_path, "stranger", "[enclaved.plugins.more]\nx = y\n")
    assert installed_plugins([str(tmp_path)]) == [
        InstalledPlugin("a", "a.a", "a_plugin", "1.2"),
        InstalledPlugin("b", "a.b", "a_plugin", "1.2"),
    ]


def test_of_a_distribution_in_two_folders_the_first_counts(tmp_path: Path) -> None:
    distribution(tmp_path / "first", "My.Plugin", "[enclaved.plugins]\na = new\n", version="2")
    distribution(tmp_path / "second", "my_plugin", "[enclaved.plugins]\na = old\n", version="1")
    found = installed_plugins([str(tmp_path / "first"), str(tmp_path / "second")])
    assert [(plugin.module, plugin.version) for plugin in found] == [("new", "2")]


def test_what_cannot_be_read_holds_no_plugin(tmp_path: Path) -> None:
    info = distribution(tmp_path, "broken", "")
    info.joinpath("entry_points.txt").write_bytes(b"[enclaved.plugins]\n\xff = x\n")
    tmp_path.joinpath("empty-1.dist-info").mkdir()
    tmp_path.joinpath("file-1.dist-info").write_text("", encoding="utf-8")
    assert installed_plugins([str(tmp_path), str(tmp_path / "missing"), str(tmp_path / "file-1.dist-info")]) == []


def test_a_distribution_without_metadata_still_brings_its_plugin(tmp_path: Path) -> None:
    distribution(tmp_path, "bare", "[enclaved.plugins]\na = a\n", suffix="egg-info").joinpath("METADATA").unlink()
    assert installed_plugins([str(tmp_path)]) == [InstalledPlugin("a", "a", None, None)]


def test_it_finds_what_the_standard_library_finds() -> None:
    expected = {(entry.name, entry.value) for entry in importlib.metadata.entry_points(group=GROUP)}
    assert {(plugin.name, plugin.module) for plugin in installed_plugins()} == expected
    assert ("fake", "enclave_fake.plugin") in expected
