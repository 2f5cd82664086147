"""Decides for which GPU llama.cpp is built: `decide` is pure, `look` reads what this machine has.

`app` calls both. Nothing here builds anything; whether a build then succeeds is `app`'s to see.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from enclave_setup.failure import SetupError

KINDS = ("cuda", "vulkan", "metal", "none")
WISHES = ("auto", *KINDS)


@dataclass(frozen=True)
class Found:
    """What this machine has of what the GPU builds need."""

    system: str
    """`platform.system()`: Linux, Darwin, …"""
    machine: str
    """`platform.machine()`: x86_64, arm64, …"""
    nvidia_gpus: tuple[str, ...] = ()
    """Name and compute capability of each GPU that the NVIDIA driver reports."""
    nvcc_version: str | None = None
    """The last line of `nvcc --version`; None without a CUDA compiler."""
    render_nodes: tuple[str, ...] = ()
    """The kernel's render nodes (`renderD128`, …): a GPU that Vulkan may find."""
    has_vulkan_headers: bool = False
    has_vulkan_loader: bool = False
    has_glslc: bool = False
    """The compiler of Vulkan's shaders."""

    @property
    def missing_for_vulkan(self) -> tuple[str, ...]:
        """What a Vulkan build lacks, in words."""
        return tuple(
            name
            for name, there in (
                ("the Vulkan headers", self.has_vulkan_headers),
                ("the Vulkan loader", self.has_vulkan_loader),
                ("glslc", self.has_glslc),
            )
            if not there
        )


@dataclass(frozen=True)
class Choice:
    """Which build of llama.cpp to make."""

    kind: str
    """One of `KINDS`."""
    why: str
    """What was found and why this follows, for a person."""
    may_fall_back: bool
    """Whether a build for the CPU is what the user wants when this one fails."""


def decide(wish: str, found: Found) -> Choice:
    """Choose the build of llama.cpp for `wish` (one of `WISHES`) on the machine that `found` describes.

    `auto` never fails: it takes the first of Metal, CUDA and Vulkan for which there is a GPU and all that the build
    needs, else the CPU. Raises SetupError for another wish if what its build needs is missing.
    """
    if wish == "auto":
        return _decide_freely(found)
    if wish == "none":
        return Choice("none", "as asked: the CPU only", may_fall_back=False)
    if wish == "cuda":
        if found.nvcc_version is None:
            raise SetupError(
                "GPU=cuda: no CUDA compiler (nvcc) was found.",
                "Install NVIDIA's CUDA toolkit and put its bin folder on PATH, or run: make setup GPU=none",
            )
        aside = "" if found.nvidia_gpus else "; no NVIDIA GPU answers here, so it is built for all common ones"
        return Choice("cuda", f"as asked: CUDA, {found.nvcc_version}{aside}", may_fall_back=False)
    if wish == "vulkan":
        if found.missing_for_vulkan:
            raise SetupError(
                f"GPU=vulkan: not found here: {', '.join(found.missing_for_vulkan)}.",
                "Install them, for instance with 'apt install libvulkan-dev glslc' or 'dnf install vulkan-headers "
                "vulkan-loader-devel glslc', or run: make setup GPU=none",
            )
        return Choice("vulkan", "as asked: Vulkan", may_fall_back=False)
    if wish == "metal":
        if found.system != "Darwin":
            raise SetupError(
                f"GPU=metal: Metal is a part of macOS, and this is {found.system}.",
                "Run: make setup GPU=auto",
            )
        return Choice("metal", "as asked: Metal", may_fall_back=False)
    raise SetupError(f"GPU={wish} is not known.", f"Choose one of: {', '.join(WISHES)}")


def _decide_freely(found: Found) -> Choice:
    if found.system == "Darwin":
        if found.machine == "arm64":
            return Choice("metal", "an Apple GPU: Metal", may_fall_back=True)
        return Choice("none", "a Mac with an Intel processor: the CPU is faster than its GPU", may_fall_back=False)
    if found.nvidia_gpus and found.nvcc_version is not None:
        return Choice("cuda", f"{', '.join(found.nvidia_gpus)} and {found.nvcc_version}: CUDA", may_fall_back=True)
    if (found.nvidia_gpus or found.render_nodes) and not found.missing_for_vulkan:
        return Choice("vulkan", "a GPU and all that a Vulkan build needs: Vulkan", may_fall_back=True)
    if found.nvidia_gpus:
        return Choice(
            "none",
            f"{', '.join(found.nvidia_gpus)}, but no CUDA compiler (nvcc), and for Vulkan "
            f"{', '.join(found.missing_for_vulkan)} missing: the CPU only",
            may_fall_back=False,
        )
    if found.render_nodes:
        return Choice(
            "none",
            f"a GPU ({', '.join(found.render_nodes)}), but for Vulkan {', '.join(found.missing_for_vulkan)} missing: "
            "the CPU only",
            may_fall_back=False,
        )
    aside = " (there is a CUDA compiler, but no NVIDIA GPU answers)" if found.nvcc_version else ""
    return Choice("none", f"no GPU found{aside}: the CPU only", may_fall_back=False)


def cmake_defines(kind: str) -> dict[str, str]:
    """The CMake settings of the build `kind`. Each switch is set, as some are on by default on some platforms."""
    return {
        "GGML_NATIVE": "ON",
        "GGML_OPENMP": "ON",
        "LLAMA_OPENSSL": "OFF",
        "GGML_CUDA": "ON" if kind == "cuda" else "OFF",
        "GGML_VULKAN": "ON" if kind == "vulkan" else "OFF",
        "GGML_METAL": "ON" if kind == "metal" else "OFF",
    }


def look() -> Found:
    """Read what this machine has. Takes up to a second where NVIDIA's driver has to wake a GPU."""
    system = platform.system()
    nvidia = _lines_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
    nvcc = _lines_of("nvcc", "--version")
    prefixes = [Path("/usr"), Path("/usr/local"), *(Path(p) for p in (os.environ.get("VULKAN_SDK"),) if p)]
    libraries = [
        folder
        for prefix in prefixes
        for folder in (prefix / "lib", prefix / "lib64", *(prefix / "lib").glob("*-linux-gnu*"))
    ]
    return Found(
        system=system,
        machine=platform.machine(),
        nvidia_gpus=tuple(nvidia),
        nvcc_version=nvcc[-1] if nvcc else None,
        render_nodes=tuple(sorted(node.name for node in Path("/dev/dri").glob("renderD*")))
        if system == "Linux"
        else (),
        has_vulkan_headers=any((prefix / "include/vulkan/vulkan.h").is_file() for prefix in prefixes),
        has_vulkan_loader=any((folder / "libvulkan.so").exists() for folder in libraries),
        has_glslc=shutil.which("glslc") is not None,
    )


def _lines_of(*command: str) -> list[str]:
    """The lines that a program prints; none if it is not there, fails, or takes more than 20 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
