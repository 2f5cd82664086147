"""What the kernel says about a process's walls: /proc/PID/status of the process and of each of its threads.

The daemon reads it after every spawn, and `confirms` says whether the child's own report can be believed; `enter` reads
it to check itself. Parsing is pure, the reader only reads. Landlock leaves no trace in /proc: that part rests on the
attempt that `enter` makes from inside.
"""
# pathlib takes longer to load (2.6 ms) than the walls to go up (1.5 ms).
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SECCOMP_MODE_FILTER: Final = 2


@dataclass(frozen=True)
class ThreadWalls:
    """The lines of one status file that matter here."""

    no_new_privs: bool
    seccomp_mode: int
    """0 none, 1 strict, 2 filter."""
    seccomp_filters: int | None
    """How many filters are stacked; None on a kernel that doesn't say (before 5.9)."""
    capabilities: int
    """Effective and permitted ones, as a mask."""
    threads: int


@dataclass(frozen=True)
class ObservedWalls:
    """What the kernel says about a whole process."""

    pid: int
    first: ThreadWalls
    """The main thread."""
    threads_alike: bool
    """Whether every thread seen has the main thread's walls."""


def parse_status(text: str) -> ThreadWalls:
    """Reads the text of /proc/PID/status. Raises ValueError when a line that every kernel since 4.10 writes is
    missing."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        return ThreadWalls(
            no_new_privs=fields["NoNewPrivs"].strip() == "1",
            seccomp_mode=int(fields["Seccomp"]) if "Seccomp" in fields else 0,
            seccomp_filters=int(fields["Seccomp_filters"]) if "Seccomp_filters" in fields else None,
            capabilities=int(fields["CapEff"], 16) | int(fields["CapPrm"], 16),
            threads=int(fields["Threads"]),
        )
    except KeyError as missing:
        raise ValueError(f"no line {missing} in this status file") from missing


def read_walls_of(pid: int) -> ObservedWalls:
    """The walls of a live process. Raises ProcessLookupError when it is gone; a thread that ends meanwhile is left
    out."""
    folder = f"/proc/{pid}"
    try:
        first = _read(f"{folder}/status")
        task_ids = os.listdir(f"{folder}/task")
    except FileNotFoundError as gone:
        raise ProcessLookupError(f"process {pid} is gone") from gone
    seen: list[ThreadWalls] = []
    for task_id in task_ids:
        try:
            seen.append(_read(f"{folder}/task/{task_id}/status"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ObservedWalls(pid, first, all(_same_walls(first, thread) for thread in seen))


def objections(observed: ObservedWalls, report: Mapping[str, object]) -> tuple[str, ...]:
    """Where the kernel's word differs from the child's own report (`Walls.to_dict()`); empty when it confirms it.

    A child that reports no filter is not objected to for lacking one: whether such a child may serve is the caller's
    choice by the report's `state`.
    """
    walls, found = observed.first, list[str]()
    if report.get("no_new_privs") is True and not walls.no_new_privs:
        found.append("it may gain privileges (NoNewPrivs is 0)")
    if report.get("seccomp") is True:
        if walls.seccomp_mode != SECCOMP_MODE_FILTER:
            found.append(f"no seccomp filter is in force (Seccomp is {walls.seccomp_mode})")
        elif walls.seccomp_filters == 0:
            found.append("no seccomp filter is in force (Seccomp_filters is 0)")
        reported = report.get("seccomp_filters")
        if isinstance(reported, int) and walls.seccomp_filters is not None and walls.seccomp_filters < reported:
            found.append(f"{walls.seccomp_filters} seccomp filters are in force, {reported} were reported")
    if report.get("capabilities_dropped") is True and walls.capabilities:
        found.append(f"it holds capabilities ({walls.capabilities:x})")
    if not observed.threads_alike:
        found.append("its threads don't all have the same walls")
    return tuple(found)


def confirms(observed: ObservedWalls, report: Mapping[str, object]) -> bool:
    """Whether the child really is behind the walls that it reports: a full report that the kernel doesn't
    contradict."""
    return report.get("state") == "full" and report.get("seccomp") is True and not objections(observed, report)


def _same_walls(one: ThreadWalls, other: ThreadWalls) -> bool:
    def walls(thread: ThreadWalls) -> tuple[object, ...]:
        return thread.no_new_privs, thread.seccomp_mode, thread.seccomp_filters, thread.capabilities

    return walls(one) == walls(other)


def _read(path: str) -> ThreadWalls:
    with open(path, encoding="ascii", errors="replace") as file:
        return parse_status(file.read())
