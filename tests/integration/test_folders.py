"""Folders are watched: what comes and goes is listed and told within a second, and only when it is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import enclave
from enclave.protocol.bodies import EventChunk
from enclave_builtin.random_model import make_random_model
from tests.conftest import StartDaemon
from tests.running import RunningDaemon

SECONDS = 1.0
"""So soon a change must be known, on a machine that does nothing else."""


class Watching:
    """A daemon with one folder, and a subscriber that has its first snapshot."""

    def __init__(
        self, daemon: RunningDaemon, folder: Path, client: enclave.Client, events: Iterator[EventChunk]
    ) -> None:
        self.daemon = daemon
        self.folder = folder
        self.client = client
        self._events = events
        first = next(events)
        assert first.name == "snapshot"
        self.known: dict[str, dict[str, Any]] = {
            name: info for name, info in (first.data or {}).items() if isinstance(info, dict)
        }

    def next(self) -> tuple[str, str]:
        """The next change: what happened to which model."""
        event = next(self._events)
        assert event.key is not None
        return event.name, event.key

    def names(self) -> list[str]:
        return [model.name for model in self.client.models() if model.source == "folder"]


@pytest.fixture
def watching(home: Path, start_daemon: StartDaemon) -> Iterator[Watching]:
    folder = home.parent / "models"
    folder.mkdir()
    daemon = start_daemon(config=f'[plugins.folder]\nfolders = ["{folder}"]\n')
    with ExitStack() as stack:
        client = stack.enter_context(daemon.client())
        events = stack.enter_context(client.events("models"))
        yield Watching(daemon, folder, client, iter(events))


@pytest.fixture(scope="module")
def model() -> bytes:
    return make_random_model()


def test_a_file_that_appears_is_listed_and_told_within_a_second(watching: Watching, model: bytes) -> None:
    began = time.monotonic()
    (watching.folder / "new.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:new.gguf")
    assert time.monotonic() - began < SECONDS
    (listed,) = [each for each in watching.client.models() if each.name == "folder:new.gguf"]
    assert listed.size == len(model)
    assert "generate" in listed.capabilities  # its header has been read


def test_a_file_that_goes_is_told_and_a_folder_of_files_as_well(watching: Watching, model: bytes) -> None:
    (watching.folder / "deep").mkdir()
    (watching.folder / "deep" / "a.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:deep/a.gguf")
    began = time.monotonic()
    (watching.folder / "deep").rename(watching.folder.parent / "elsewhere")
    assert watching.next() == ("removed", "folder:deep/a.gguf")
    assert time.monotonic() - began < 2 * SECONDS
    assert watching.names() == []


def test_a_file_that_is_being_written_is_not_listed_before_its_writer_has_closed_it(
    watching: Watching, model: bytes
) -> None:
    with (watching.folder / "slow.gguf").open("wb") as file:
        file.write(model)
        file.flush()
        (watching.folder / "other.gguf").write_bytes(model)
        assert watching.next() == ("added", "folder:other.gguf")
        assert watching.names() == ["folder:other.gguf"]
    assert watching.next() == ("added", "folder:slow.gguf")


def test_a_file_of_which_a_part_is_missing_is_not_listed_until_the_rest_has_come(
    watching: Watching, model: bytes
) -> None:
    half = watching.folder / "half.gguf"
    half.write_bytes(model[: len(model) // 2])
    (watching.folder / "other.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:other.gguf")
    assert watching.names() == ["folder:other.gguf"]
    with pytest.raises(enclave.EnclaveError, match="cut off"):
        watching.client.show("folder:half.gguf")
    with half.open("ab") as file:
        file.write(model[len(model) // 2 :])
    assert watching.next() == ("added", "folder:half.gguf")


def test_a_file_that_was_just_copied_can_be_used_before_it_is_listed(watching: Watching, model: bytes) -> None:
    (watching.folder / "new.gguf").write_bytes(model)
    assert watching.client.show("folder:new").name == "folder:new.gguf"


def test_a_changed_file_is_told(watching: Watching, model: bytes) -> None:
    path = watching.folder / "a.gguf"
    path.write_bytes(model)
    assert watching.next() == ("added", "folder:a.gguf")
    (watching.folder.parent / "b").write_bytes(model + bytes(32))
    (watching.folder.parent / "b").replace(path)
    assert watching.next() == ("changed", "folder:a.gguf")
    assert [each.size for each in watching.client.models() if each.source == "folder"] == [len(model) + 32]


def test_what_a_restart_finds_is_what_is_there(watching: Watching, model: bytes) -> None:
    for name in ("a.gguf", "b.gguf"):
        (watching.folder / name).write_bytes(model)
    assert {watching.next(), watching.next()} == {("added", "folder:a.gguf"), ("added", "folder:b.gguf")}
    watching.daemon.close()
    (watching.folder / "a.gguf").unlink()
    (watching.folder / "c.gguf").write_bytes(model)
    watching.daemon.start()
    with watching.daemon.client() as client, client.events("models") as events:
        names = set(next(iter(events)).data or {})
        assert "folder:b.gguf" in names
        assert "folder:a.gguf" not in names


def test_a_link_to_a_folder_elsewhere_is_watched_there(watching: Watching, model: bytes) -> None:
    elsewhere = watching.folder.parent / "elsewhere"
    elsewhere.mkdir()
    (watching.folder / "link").symlink_to(elsewhere)
    (watching.folder / "a.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:a.gguf")  # by now the link was found
    (elsewhere / "far.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:link/far.gguf")


def test_a_folder_that_comes_later_is_found(home: Path, start_daemon: StartDaemon, model: bytes) -> None:
    folder = home.parent / "later"
    daemon = start_daemon({"ENCLAVE_CATALOG_POLL_SECONDS": "0.2"}, config=f'[plugins.folder]\nfolders = ["{folder}"]\n')
    with daemon.client() as client, client.events("models") as events:
        told = iter(events)
        next(told)
        folder.mkdir()
        (folder / "a.gguf").write_bytes(model)
        assert next(told).key == "folder:a.gguf"


def test_a_folder_is_added_listed_and_removed_while_the_daemon_runs(watching: Watching, model: bytes) -> None:
    added = watching.folder.parent / "added"
    added.mkdir()
    (added / "there.gguf").write_bytes(model)
    told = watching.client.add_folder(added)
    assert (told.path, told.source, told.added) == (str(added), "folder", True)
    assert watching.next() == ("added", "folder:there.gguf")
    (added / "later.gguf").write_bytes(model)
    assert watching.next() == ("added", "folder:later.gguf")
    listed = {folder.path: folder for folder in watching.client.folders()}
    assert listed[str(added)].models == 2
    assert listed[str(watching.folder)].added is False
    assert watching.client.generate("folder:there.gguf", "a", max_tokens=2).result().usage.completion_tokens == 2
    watching.client.remove_folder(added)
    assert {watching.next(), watching.next()} == {("removed", "folder:later.gguf"), ("removed", "folder:there.gguf")}
    assert [folder.path for folder in watching.client.folders()] == [str(watching.folder)]
    assert sorted(file.name for file in added.iterdir()) == ["later.gguf", "there.gguf"]


def test_a_folder_of_the_configuration_is_not_removed_over_the_wire(watching: Watching) -> None:
    with pytest.raises(enclave.BadRequestError, match="was not added") as caught:
        watching.client.remove_folder(watching.folder)
    assert "configuration" in caught.value.hint


def test_an_added_folder_is_there_after_a_kill(home: Path, start_daemon: StartDaemon, model: bytes) -> None:
    folder = home.parent / "added"
    folder.mkdir()
    (folder / "there.gguf").write_bytes(model)
    daemon = start_daemon()
    with daemon.client() as client:
        client.add_folder(folder)
    daemon.kill()
    with start_daemon().client() as client, client.events("models") as events:
        # In the first snapshot, or as soon as its header has been read.
        assert any("folder:there.gguf" in (event.key, *(event.data or {})) for event in events)
        assert [(each.path, each.added) for each in client.folders()] == [(str(folder), True)]
