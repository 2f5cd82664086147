"""Which GPU llama.cpp is built for."""

from __future__ import annotations

import dataclasses

import pytest
from enclave_setup.failure import SetupError
from enclave_setup.gpu import KINDS, WISHES, Found, cmake_defines, decide
from hypothesis import given
from hypothesis import strategies as st

BARE = Found(system="Linux", machine="x86_64")
CUDA = dataclasses.replace(BARE, nvidia_gpus=("NVIDIA H200, 9.0",), nvcc_version="Build cuda_12.9")
VULKAN = dataclasses.replace(
    BARE, render_nodes=("renderD128",), has_vulkan_headers=True, has_vulkan_loader=True, has_glslc=True
)
APPLE = Found(system="Darwin", machine="arm64")

machines = st.builds(
    Found,
    system=st.sampled_from(["Linux", "Darwin", "FreeBSD"]),
    machine=st.sampled_from(["x86_64", "arm64"]),
    nvidia_gpus=st.sampled_from([(), ("GPU, 8.6",)]),
    nvcc_version=st.sampled_from([None, "Build cuda_12.9"]),
    render_nodes=st.sampled_from([(), ("renderD128",)]),
    has_vulkan_headers=st.booleans(),
    has_vulkan_loader=st.booleans(),
    has_glslc=st.booleans(),
)


def test_a_machine_without_a_gpu_gets_the_cpu_build() -> None:
    assert decide("auto", BARE).kind == "none"


def test_a_cuda_compiler_without_a_gpu_is_not_reason_enough() -> None:
    choice = decide("auto", dataclasses.replace(BARE, nvcc_version="Build cuda_12.9"))
    assert choice.kind == "none"
    assert "no NVIDIA GPU" in choice.why


def test_an_nvidia_gpu_with_a_compiler_gets_cuda() -> None:
    assert decide("auto", CUDA).kind == "cuda"


def test_an_nvidia_gpu_without_a_compiler_is_told_what_is_missing() -> None:
    choice = decide("auto", dataclasses.replace(CUDA, nvcc_version=None))
    assert choice.kind == "none"
    assert "nvcc" in choice.why


def test_an_nvidia_gpu_without_a_compiler_gets_vulkan_where_that_can_be_built() -> None:
    assert decide("auto", dataclasses.replace(VULKAN, nvidia_gpus=("GPU, 8.6",))).kind == "vulkan"


def test_vulkan_needs_a_gpu() -> None:
    assert decide("auto", VULKAN).kind == "vulkan"
    assert decide("auto", dataclasses.replace(VULKAN, render_nodes=())).kind == "none"


def test_a_gpu_whose_build_lacks_something_is_named_with_what_it_lacks() -> None:
    choice = decide("auto", dataclasses.replace(VULKAN, has_glslc=False))
    assert choice.kind == "none"
    assert "renderD128" in choice.why
    assert "glslc" in choice.why


def test_an_apple_gpu_gets_metal_and_an_intel_mac_the_cpu() -> None:
    assert decide("auto", APPLE).kind == "metal"
    assert decide("auto", dataclasses.replace(APPLE, machine="x86_64")).kind == "none"


@pytest.mark.parametrize(
    ("wish", "found", "missing"),
    [
        ("cuda", BARE, "nvcc"),
        ("vulkan", dataclasses.replace(VULKAN, has_glslc=False), "glslc"),
        ("metal", BARE, "macOS"),
        ("rocm", CUDA, "not known"),
    ],
)
def test_a_wish_that_cannot_be_built_is_an_error_with_the_next_step(wish: str, found: Found, missing: str) -> None:
    with pytest.raises(SetupError) as caught:
        decide(wish, found)
    assert missing in caught.value.message
    assert caught.value.hint


@given(machines)
def test_auto_never_fails_and_only_a_gpu_build_falls_back(found: Found) -> None:
    choice = decide("auto", found)
    assert choice.kind in KINDS
    assert choice.may_fall_back == (choice.kind != "none")


@given(st.sampled_from(WISHES[1:]), machines)
def test_a_wish_is_kept_or_refused_but_never_replaced(wish: str, found: Found) -> None:
    try:
        choice = decide(wish, found)
    except SetupError:
        return
    assert choice.kind == wish
    assert not choice.may_fall_back


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_switches_on_its_own_gpu_and_no_other(kind: str) -> None:
    on = {name for name, value in cmake_defines(kind).items() if value == "ON"}
    gpus = {"GGML_CUDA", "GGML_VULKAN", "GGML_METAL"}
    assert on & gpus == {f"GGML_{kind.upper()}"} & gpus
    assert {"GGML_NATIVE", "GGML_OPENMP"} <= on
