"""A GGUF file's way into llama.cpp, the same for engines that generate and for those that make vectors."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from typing import Any, cast

import llama_cpp

from enclave_llama_cpp.log import LoadLog
from enclave_llama_cpp.memory import estimate, maps_weights
from enclave_llama_cpp.stream import FileStream
from enclaved.plugin.engine import LoadError, LoadRequest, MemoryUse, OpenFile


def weights_of(files: Sequence[OpenFile]) -> OpenFile:
    """The one file of weights. Raises LoadError for what is more, or other, than that."""
    weights = [file for file in files if file.role == "weights"]
    if len(weights) != 1 or any(file.role == "shard" for file in files):
        raise LoadError("a model split into several files cannot be loaded yet; join its parts into one file first")
    unusable = sorted({file.role for file in files} & {"adapter", "draft", "projector"})
    if unusable:
        raise LoadError(f"this backend takes no {' or '.join(unusable)} file yet")
    return weights[0]


def check_machine(request: LoadRequest) -> None:
    """Refuses what is larger than the machine. Linux would hand out the memory all the same, and end some process,
    perhaps another's, when llama.cpp clears it. What is free is the scheduler's affair."""
    if request.placement.gpu_layers:
        return
    needed_bytes = estimate(request.header, request.placement, platform.machine()).total_bytes
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed_bytes > machine_bytes:
        raise LoadError(
            f"{request.model} would need {needed_bytes / 2**30:,.1f} GiB, this machine has "
            f"{machine_bytes / 2**30:,.1f}; less context or fewer sequences may fit",
            out_of_memory=True,
        )


def load_model(stream: FileStream, request: LoadRequest, progress: Callable[[float], bool], log: LoadLog) -> Any:
    """llama.cpp's model. Raises LoadError, and whatever `progress` raises."""
    failures: list[Exception] = []
    cancelled = False

    def report(fraction: float, _: object) -> bool:
        nonlocal cancelled
        try:
            cancelled = cancelled or not progress(fraction)
        except Exception as error:  # noqa: BLE001 - cannot pass through C; raised again below
            failures.append(error)
        return not cancelled and not failures

    params = llama_cpp.llama_model_default_params()
    callback = llama_cpp.llama_progress_callback(report)
    params.progress_callback = cast("Any", callback)
    params.n_gpu_layers = request.placement.gpu_layers
    is_mapped = maps_weights(request.header, platform.machine())
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if is_mapped else llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file_ptr(cast("Any", stream.pointer), params)
    if failures or cancelled:
        if model:
            llama_cpp.llama_model_free(model)
        raise failures[0] if failures else LoadError("the load was cancelled")
    if not model:
        raise LoadError(f"{request.model} cannot be loaded: {log.reason}", out_of_memory=log.out_of_memory)
    return model


def flash_attention(wish: bool | None, *, quantised: bool) -> int:
    """`enum llama_flash_attn_type`; quantised values work with it only."""
    if wish is None and not quantised:
        return llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    return llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED if wish is False else llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED


def memory_use(log: LoadLog) -> MemoryUse:
    """Sums up the buffers that llama.cpp named: `CPU_Mapped model`, `CPU_REPACK model`, `CPU KV`, `CUDA0 compute` …"""
    sums = {"weights": 0, "kv": 0, "compute": 0, "repacked": 0, "other": 0}
    devices: dict[str, int] = {}
    for name, nbytes in log.buffers:
        buffer, _, kind = name.rpartition(" ")
        if kind == "model":
            sums["repacked" if "REPACK" in buffer else "weights"] += nbytes
        elif kind in {"KV", "RS", "state"}:
            sums["kv"] += nbytes
        elif kind in {"compute", "output"}:
            sums["compute"] += nbytes
        else:
            sums["other"] += nbytes
        device = buffer.strip().split("_")[0]
        devices[device] = devices.get(device, 0) + nbytes
    return MemoryUse(**{f"{name}_bytes": nbytes for name, nbytes in sums.items()}, devices=devices)
