"""This machine's cores and memory, as the kernel and the control groups tell. Reads files; decides nothing."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from enclaved.daemon.config import setting

GIB = 1024**3
RESERVE_FRACTION = 0.1
"""Of all memory, for the user's other programs; at least 1 GiB."""


@dataclass(frozen=True)
class MemorySettings:
    """The table `[memory]`."""

    limit_bytes: int = setting(
        0, "Memory that all models together may take; 0: what the machine leaves, less a reserve.", minimum=0
    )


@dataclass(frozen=True)
class CpuSettings:
    """The table `[cpu]`."""

    cores_max: int = setting(0, "Cores that all models together may keep busy; 0: as many as there are.", minimum=0)


@dataclass(frozen=True)
class Machine:
    """What there is."""

    cores: int
    """Cores this process may run on, or its control group's quota where that is less."""
    memory_bytes: int
    """Of the machine."""
    memory_limit_bytes: int | None
    """Of the control group, where there is one."""


def memory_limit_bytes(machine: Machine, configured_bytes: int) -> int:
    """Bytes that models may take: as configured, else what there is less a reserve of max(1 GiB, a tenth)."""
    if configured_bytes > 0:
        return configured_bytes
    there_is = min(machine.memory_bytes, machine.memory_limit_bytes or machine.memory_bytes)
    reserve = max(GIB, int(there_is * RESERVE_FRACTION))
    return max(there_is - reserve, there_is // 2)


def usable_cores(machine: Machine, configured: int) -> int:
    """Cores that models may keep busy: as many as there are, or fewer as configured."""
    return min(machine.cores, configured) if configured > 0 else machine.cores


def read_machine(cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> Machine:
    """Reads the machine. What cannot be read is left out; nothing is raised."""
    if sys.platform == "win32":
        return Machine(os.cpu_count() or 1, _windows_memory_bytes(), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = _cgroup_folder(cgroup_root, proc)
    quota = _quota_cores(folder, cgroup_root)
    if quota is not None:
        cores = max(1, min(cores, int(quota)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cores, memory, _cgroup_limit_bytes(folder, cgroup_root))


def _cgroup_folder(root: Path, proc: Path) -> Path:
    """The folder of this process's control group (version 2)."""
    with suppress(OSError, IndexError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return Path(os.path.normpath(root / line[3:].lstrip("/")))
    return root


def _cgroup_limit_bytes(folder: Path, root: Path) -> int | None:
    """The least limit on the way from the folder up to the root: each of them holds."""
    limits: list[int] = []
    for group in _groups(folder, root):
        with suppress(OSError, ValueError):
            limits.append(int((group / "memory.max").read_text()))
    return min(limits, default=None)


def _quota_cores(folder: Path, root: Path) -> float | None:
    quotas: list[float] = []
    for group in _groups(folder, root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _groups(folder: Path, root: Path) -> list[Path]:
    """The folder and those above it, up to the root; only the root where the folder is not below it."""
    if not folder.is_relative_to(root):
        return [root]
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _windows_memory_bytes() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "page", "page_free", "virtual", "a", "b")),
        )

    status = Status(length=ctypes.sizeof(Status))
    getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # noqa: B009 - absent elsewhere
    return int(status.total)
