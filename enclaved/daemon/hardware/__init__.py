"""What this machine has and what of it the daemon may use."""

from __future__ import annotations

from enclaved.daemon.hardware.machine import (
    CpuSettings,
    Machine,
    MemorySettings,
    memory_limit_bytes,
    read_machine,
    usable_cores,
)

__all__ = ["CpuSettings", "Machine", "MemorySettings", "memory_limit_bytes", "read_machine", "usable_cores"]
