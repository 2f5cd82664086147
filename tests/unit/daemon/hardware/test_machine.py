"""What the machine has, from control group trees in a folder of the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.daemon.hardware import Machine, memory_limit_bytes, read_machine, usable_cores

GIB = 1024**3


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A control group two folders below the root, which this process is said to be in."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/x\n0::/user.slice/app\n")
    folder = tmp_path / "cgroup/user.slice/app"
    folder.mkdir(parents=True)
    return folder


def _read(group: Path) -> Machine:
    root = group.parent.parent
    return read_machine(root, root.parent / "proc")


def test_limits_of_the_own_group_are_found(group: Path) -> None:
    (group / "memory.max").write_text(f"{3 * GIB}\n")
    (group / "cpu.max").write_text("100000 100000\n")
    machine = _read(group)
    assert (machine.memory_limit_bytes, machine.cores) == (3 * GIB, 1)


def test_a_limit_of_a_group_above_holds_too(group: Path) -> None:
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{2 * GIB}\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("150000 100000\n")
    machine = _read(group)
    assert (machine.memory_limit_bytes, machine.cores) == (2 * GIB, 1)


@pytest.mark.parametrize("own", [1, 5])
def test_of_several_limits_the_least_holds(group: Path, own: int) -> None:
    (group / "memory.max").write_text(str(own * GIB))
    (group.parent / "memory.max").write_text(str(2 * GIB))
    assert _read(group).memory_limit_bytes == min(own, 2) * GIB


def test_a_group_that_is_not_visible_from_here_means_the_root(group: Path) -> None:
    root = group.parent.parent
    (root.parent / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    (root / "memory.max").write_text(str(GIB))
    assert _read(group).memory_limit_bytes == GIB


@pytest.mark.parametrize("text", ["", "max", "x", "1 0", "1", "max max", "-1 x", "\x00"])
def test_what_makes_no_sense_is_no_limit(group: Path, text: str) -> None:
    (group / "cpu.max").write_text(text)
    (group / "memory.max").write_text("garbage")
    machine = _read(group)
    assert machine.memory_limit_bytes is None
    assert machine.cores >= 1


def test_without_control_groups_the_machine_itself_counts(tmp_path: Path) -> None:
    machine = read_machine(tmp_path / "no", tmp_path / "none")
    assert machine.memory_limit_bytes is None
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 0


@given(st.integers(1, 2**45), st.none() | st.integers(1, 2**45))
def test_models_get_what_there_is_less_a_reserve(memory: int, limit: int | None) -> None:
    there_is = min(memory, limit or memory)
    given_bytes = memory_limit_bytes(Machine(4, memory, limit), 0)
    assert there_is // 2 <= given_bytes <= there_is
    assert given_bytes <= there_is - GIB or given_bytes == there_is // 2


def test_what_is_configured_counts() -> None:
    assert memory_limit_bytes(Machine(4, 8 * GIB, 2 * GIB), 5 * GIB) == 5 * GIB
    assert usable_cores(Machine(4, GIB, None), 2) == 2
    assert usable_cores(Machine(4, GIB, None), 9) == 4
    assert usable_cores(Machine(4, GIB, None), 0) == 4
