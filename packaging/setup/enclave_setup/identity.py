"""What a build of llama.cpp depends on beside its sources, as one short digest.

The build is made for this very CPU, so a wheel in the package client's cache must not be found by another one. The
client's cache is keyed by the build's settings: `app` passes the digest as a CMake setting that nothing reads.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Fields of /proc/cpuinfo that say what the compiler may use: the x86 ones, then the Arm ones.
_CPU_FIELDS = frozenset(
    {"vendor_id", "cpu family", "model", "model name", "flags"}
    | {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}
    | {"isa", "uarch", "cpu"}
)
# Read by CMake or by the build backend.
BUILD_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CUDACXX", "CUDAARCHS", "CUDA_PATH")


def cpu_from_cpuinfo(text: str) -> dict[str, str]:
    """The telling fields of a `/proc/cpuinfo`, of all its processors: big and little cores differ."""
    values: dict[str, set[str]] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() in _CPU_FIELDS:
            values.setdefault(name.strip(), set()).add(" ".join(sorted(value.split())))
    return {name: " | ".join(sorted(found)) for name, found in sorted(values.items())}


def read_cpu() -> dict[str, str]:
    """What identifies this machine's CPU to a compiler."""
    cpu = {"machine": platform.machine(), "system": platform.system()}
    if cpu["system"] == "Linux":
        return cpu | cpu_from_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    if cpu["system"] == "Darwin":
        brand = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return cpu | {"brand": brand.stdout.strip()}
    return cpu | {"processor": platform.processor()}


def digest(cpu: Mapping[str, str], environment: Mapping[str, str], gpu: Mapping[str, str]) -> str:
    """16 hexadecimal digits for all that the build depends on; `gpu` says what the GPU's compiler looks at."""
    parts = {
        "cpu": dict(cpu),
        "environment": {name: environment[name] for name in BUILD_VARIABLES if environment.get(name)},
        "gpu": dict(gpu),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
