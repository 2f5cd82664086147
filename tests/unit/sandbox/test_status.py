from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.sandbox.status import ObservedWalls, ThreadWalls, confirms, objections, parse_status, read_walls_of

SANDBOXED = """Name:\tpython: a worker
Umask:\t0077
State:\tS (sleeping)
Threads:\t3
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
"""
REPORT: dict[str, object] = {
    "state": "full",
    "seccomp": True,
    "seccomp_filters": 1,
    "no_new_privs": True,
    "capabilities_dropped": True,
}
WALLS = ThreadWalls(no_new_privs=True, seccomp_mode=2, seccomp_filters=1, capabilities=0, threads=3)


def observed(walls: ThreadWalls = WALLS, *, alike: bool = True) -> ObservedWalls:
    return ObservedWalls(4321, walls, alike)


def test_the_lines_that_matter_are_read() -> None:
    assert parse_status(SANDBOXED) == WALLS


def test_an_older_kernel_does_not_count_filters() -> None:
    text = SANDBOXED.replace("Seccomp_filters:\t1\n", "")
    assert parse_status(text).seccomp_filters is None
    assert confirms(observed(parse_status(text)), REPORT)


def test_a_kernel_without_seccomp_has_none() -> None:
    assert parse_status(SANDBOXED.replace("Seccomp:\t2\nSeccomp_filters:\t1\n", "")).seccomp_mode == 0


@pytest.mark.parametrize("line", ["NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n", "Threads:\t3\n"])
def test_a_truncated_file_is_an_error_and_not_a_wall(line: str) -> None:
    with pytest.raises(ValueError, match=line.split(":")[0]):
        parse_status(SANDBOXED.replace(line, ""))


@given(st.text())
def test_garbage_is_an_error_and_not_a_wall(text: str) -> None:
    with pytest.raises(ValueError):
        parse_status(text)


def test_a_full_report_that_the_kernel_bears_out_is_confirmed() -> None:
    assert confirms(observed(), REPORT)


@pytest.mark.parametrize(
    ("walls", "word"),
    [
        (ThreadWalls(False, 2, 1, 0, 1), "NoNewPrivs"),
        (ThreadWalls(True, 0, 0, 0, 1), "no seccomp filter"),
        (ThreadWalls(True, 1, 0, 0, 1), "no seccomp filter"),
        (ThreadWalls(True, 2, 0, 0, 1), "no seccomp filter"),
        (ThreadWalls(True, 2, 1, 0x2000, 1), "capabilities"),
    ],
)
def test_a_report_that_the_kernel_contradicts_is_not_confirmed(walls: ThreadWalls, word: str) -> None:
    assert not confirms(observed(walls), REPORT)
    assert any(word in objection for objection in objections(observed(walls), REPORT))


def test_fewer_filters_than_reported_are_an_objection() -> None:
    assert objections(observed(), {**REPORT, "seccomp_filters": 2}) == (
        "1 seccomp filters are in force, 2 were reported",
    )


def test_a_thread_without_the_walls_is_an_objection() -> None:
    assert not confirms(observed(alike=False), REPORT)


def test_a_partial_report_is_never_confirmed_though_nothing_objects() -> None:
    partial = {**REPORT, "state": "partial", "seccomp": False}
    assert not confirms(observed(), partial)
    assert objections(observed(ThreadWalls(True, 0, 0, 0, 1)), partial) == ()


def test_an_empty_report_is_not_confirmed() -> None:
    assert not confirms(observed(), {})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_process_can_be_read() -> None:
    walls = read_walls_of(os.getpid())
    assert walls.pid == os.getpid()
    assert walls.first.threads >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_gone_is_said_to_be_gone() -> None:
    with pytest.raises(ProcessLookupError):
        read_walls_of(2**22 + 1)
