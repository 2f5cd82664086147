from __future__ import annotations

from pathlib import Path

import pytest

from enclave_cli import references


def _no_file(typed: str) -> bool:
    return False


@pytest.mark.parametrize("typed", ["./a", "../a", "/models/a", "~/a", "models/a", "a.gguf", "A.GGUF", "a.onnx"])
def test_separators_and_suffixes_make_a_path(typed: str) -> None:
    assert references.is_path(typed, _no_file)


@pytest.mark.parametrize("typed", ["tiny", "folder:some/name.gguf", "hf:owner/repo:Q4_K_M", "fake:load_seconds=1"])
def test_names_and_references_of_sources_are_no_paths(typed: str) -> None:
    assert not references.is_path(typed, _no_file)


def test_a_file_in_this_folder_is_a_path_without_a_suffix() -> None:
    assert references.is_path("weights", lambda typed: typed == "weights")


def test_a_relative_path_becomes_absolute_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert references.reference("a/../b.gguf") == str(tmp_path / "b.gguf")
    assert references.reference("./x") == str(tmp_path / "x")


def test_a_path_in_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert references.reference("~/m.gguf") == str(tmp_path / "m.gguf")


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").touch()
    link = tmp_path / "link.gguf"
    link.symlink_to(tmp_path / "real.gguf")
    assert references.reference(str(link)) == str(link)


def test_other_references_go_out_as_typed() -> None:
    assert references.reference("folder:some/name") == "folder:some/name"
    assert references.reference("tiny") == "tiny"
    assert references.reference(None) == references.DEFAULT_MODEL


def test_words_with_blanks_look_like_a_prompt_unless_they_are_a_file() -> None:
    assert references.looks_like_a_prompt("Once upon", _no_file)
    assert references.looks_like_a_prompt("what is 1/2", _no_file)
    assert not references.looks_like_a_prompt("tiny", _no_file)
    assert not references.looks_like_a_prompt("my model.gguf", lambda _: True)
