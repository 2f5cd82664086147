"""Who gets which child, and that nothing a disk or a full process table does ends the daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from stand_ins import StandInBackend, StandInChild

from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.supervisor import inspector as inspecting
from enclaved.daemon.supervisor import supervisor as supervising
from enclaved.daemon.supervisor.child import Child, ChildEndedError
from enclaved.daemon.supervisor.inspector import Inspector
from enclaved.daemon.supervisor.supervisor import Supervisor, WorkerSettings
from enclaved.link.messages import HeaderRead, HeaderRefused, ReadHeader
from enclaved.plugin.model import HEADER_BYTES_MAX, ModelHeader
from enclaved.plugin.plain import to_plain

pytestmark = pytest.mark.asyncio

HEADER = ModelHeader(format="x", architecture="y")


class Nursery:
    """Makes stand-ins for children, or fails to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[StandInChild] = []
        self.failure: OSError | None = None
        monkeypatch.setattr(supervising, "launch", self._launch)
        monkeypatch.setattr(supervising, "Child", lambda launched, _loop: launched.process)  # type: ignore[misc]

    def _launch(self, *_: Any) -> Any:
        class Launched:
            process = self.start()

        return Launched

    def start(self) -> StandInChild:
        if self.failure is not None:
            raise self.failure
        self.children.append(StandInChild(len(self.children) + 1))
        return self.children[-1]


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Nursery:
    return Nursery(monkeypatch)


def _supervisor(folder: Path, spare: str = "auto") -> Supervisor:
    return Supervisor(
        {"x": StandInBackend("x"), "y": StandInBackend("y")},
        WorkerSettings(spare=spare),  # type: ignore[arg-type]
        asyncio.get_running_loop(),
        environment={},
        private_folders=[],
        memory_file=folder / "last_backend",
    )


async def test_a_fresh_daemon_starts_no_spare_and_one_that_remembers_does(nursery: Nursery, tmp_path: Path) -> None:
    _supervisor(tmp_path).start_spare()
    assert nursery.children == []
    _supervisor(tmp_path).was_used("y")
    _supervisor(tmp_path).start_spare()
    assert len(nursery.children) == 2


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"no such backend", b"x" * 100_000])
async def test_garbage_in_the_memory_file_is_no_obstacle(nursery: Nursery, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last_backend").write_bytes(content)
    _supervisor(tmp_path).start_spare()
    assert nursery.children == []


async def test_a_spare_that_cannot_be_started_costs_nothing_but_time(nursery: Nursery, tmp_path: Path) -> None:
    supervisor = _supervisor(tmp_path, "always")
    nursery.failure = OSError(11, "Resource temporarily unavailable")
    supervisor.start_spare()
    supervisor.prepare("y")
    supervisor.was_used("x")
    with pytest.raises(OSError, match="temporarily"):
        await supervisor.worker("x")
    nursery.failure = None
    assert (await supervisor.worker("x")).backend == "x"


async def test_the_spare_is_lent_to_who_needs_its_backend_and_ended_for_another(
    nursery: Nursery, tmp_path: Path
) -> None:
    supervisor = _supervisor(tmp_path)
    supervisor.prepare("x")
    supervisor.prepare("x")
    assert len(nursery.children) == 1
    assert cast("Any", (await supervisor.worker("x")).child) is nursery.children[0]
    supervisor.prepare("x")
    worker = await supervisor.worker("y")
    assert nursery.children[1].killed
    assert cast("Any", worker.child) is nursery.children[2]


async def test_a_dead_spare_is_not_lent(nursery: Nursery, tmp_path: Path) -> None:
    supervisor = _supervisor(tmp_path)
    supervisor.prepare("x")
    nursery.children[0].end()
    assert cast("Any", (await supervisor.worker("x")).child) is nursery.children[1]


async def test_after_the_end_no_child_is_started_and_all_are_gone(nursery: Nursery, tmp_path: Path) -> None:
    supervisor = _supervisor(tmp_path, "always")
    await supervisor.worker("x")
    supervisor.start_spare()
    await supervisor.close()
    assert all(child.has_ended for child in nursery.children)
    started = len(nursery.children)
    supervisor.start_spare()
    supervisor.prepare("y")
    with pytest.raises(ChildEndedError):
        await supervisor.worker("x")
    with pytest.raises(RefusalError) as refused:
        await supervisor.read_header("m", "r", 0)
    assert refused.value.code == "shutting_down"
    assert len(nursery.children) == started


class Reading:
    """An inspector and the children it started."""

    def __init__(self, nursery: Nursery) -> None:
        self.children = nursery.children
        self.inspector = Inspector(lambda: cast("Child", nursery.start()), asyncio.get_running_loop())

    async def ask(self, name: str) -> asyncio.Task[ModelHeader]:
        task = asyncio.create_task(self.inspector.read_header(name, "m:f", 0))
        await _settle()
        return task

    @property
    def jobs(self) -> list[int]:
        """Of the newest child."""
        return [message.job for message in self.children[-1].sent if isinstance(message, ReadHeader)]


async def _settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_headers_are_read_one_after_the_other_in_one_child(nursery: Nursery) -> None:
    reading = Reading(nursery)
    one, two = await reading.ask("one"), await reading.ask("two")
    assert reading.jobs == [1]
    reading.children[0].say(HeaderRead(1, to_plain(HEADER)))
    assert await one == HEADER
    await _settle()
    reading.children[0].say(HeaderRefused(2, "no model", "no_model"))
    with pytest.raises(RefusalError, match="two: no model"):
        await two
    assert len(reading.children) == 1


async def test_a_file_that_ends_its_reader_costs_the_next_one_nothing(nursery: Nursery) -> None:
    reading = Reading(nursery)
    hostile, good = await reading.ask("hostile"), await reading.ask("good")
    reading.children[0].end("was ended by SIGSEGV", "last words")
    with pytest.raises(RefusalError) as refused:
        await hostile
    assert (refused.value.code, refused.value.detail) == ("bad_model_file", "last words")
    await _settle()
    reading.children[1].say(HeaderRead(reading.jobs[-1], to_plain(HEADER)))
    assert await good == HEADER


async def test_a_file_that_keeps_its_reader_busy_is_given_up_and_the_next_one_is_read(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspecting, "HEADER_SECONDS_MAX", 0.05)
    reading = Reading(nursery)
    hostile, good = await reading.ask("hostile"), await reading.ask("good")
    with pytest.raises(RefusalError, match="longer"):
        await hostile
    await _settle()
    assert reading.children[0].killed
    monkeypatch.setattr(inspecting, "HEADER_SECONDS_MAX", 20.0)
    reading.children[1].say(HeaderRead(reading.jobs[-1], to_plain(HEADER)))
    assert await good == HEADER


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"format": 1, "architecture": "y"},
        {"format": "x", "architecture": "y", "block_count": "many"},
        {"format": "x", "architecture": "y", "head_count_kv": [None]},
        {"format": "x", "architecture": "y", "more": "x" * (HEADER_BYTES_MAX + 1)},
        {"format": "x", "architecture": "y", "name": "x" * (HEADER_BYTES_MAX + 1)},
    ],
)
async def test_a_header_that_makes_no_sense_is_refused(nursery: Nursery, header: dict[str, Any]) -> None:
    reading = Reading(nursery)
    task = await reading.ask("m")
    reading.children[0].say(HeaderRead(1, header))
    with pytest.raises(RefusalError) as refused:
        await task
    assert refused.value.code == "bad_model_file"


async def test_an_answer_to_another_question_is_not_taken(nursery: Nursery) -> None:
    reading = Reading(nursery)
    task = await reading.ask("m")
    reading.children[0].say(HeaderRead(2, {}), HeaderRefused(0, "no", "no_model"), HeaderRead(1, to_plain(HEADER)))
    reading.children[0].say(HeaderRefused(1, "no", "no_model"))
    assert await task == HEADER


async def test_a_reader_that_cannot_be_started_is_a_refusal(nursery: Nursery) -> None:
    reading = Reading(nursery)
    nursery.failure = OSError(24, "Too many open files")
    with pytest.raises(RefusalError) as refused:
        await reading.inspector.read_header("m", "m:f", 0)
    assert refused.value.code == "internal"
