"""What tells one build of llama.cpp from another."""

from __future__ import annotations

from enclave_setup.identity import cpu_from_cpuinfo, digest

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R)
cpu MHz\t\t: 2000.000
flags\t\t: fpu avx2 avx512f
bogomips\t: 4000.00
"""


def test_clock_and_core_number_do_not_matter() -> None:
    later = (
        X86.replace("processor\t: 0", "processor\t: 1").replace("2000.000", "3100.123").replace("4000.00", "4000.17")
    )
    assert cpu_from_cpuinfo(X86 + "\n" + later) == cpu_from_cpuinfo(X86)


def test_the_order_of_the_flags_does_not_matter() -> None:
    assert cpu_from_cpuinfo(X86.replace("fpu avx2", "avx2 fpu")) == cpu_from_cpuinfo(X86)


def test_a_missing_flag_and_another_model_matter() -> None:
    assert cpu_from_cpuinfo(X86.replace(" avx512f", "")) != cpu_from_cpuinfo(X86)
    assert cpu_from_cpuinfo(X86.replace(": 143", ": 106")) != cpu_from_cpuinfo(X86)


def test_big_and_little_arm_cores_both_count() -> None:
    little = "CPU part\t: 0xd05\nFeatures\t: fp asimd\n"
    big = "CPU part\t: 0xd0b\nFeatures\t: fp asimd\n"
    assert cpu_from_cpuinfo(little + "\n" + big) == {"CPU part": "0xd05 | 0xd0b", "Features": "asimd fp"}


def test_the_digest_depends_on_cpu_compiler_settings_and_gpu_but_on_nothing_else() -> None:
    base = digest({"machine": "x86_64"}, {"HOME": "/a"}, {})
    assert base == digest({"machine": "x86_64"}, {"HOME": "/b", "CFLAGS": ""}, {})
    others = {
        digest({"machine": "arm64"}, {}, {}),
        digest({"machine": "x86_64"}, {"CMAKE_ARGS": "-DGGML_AVX512=OFF"}, {}),
        digest({"machine": "x86_64"}, {}, {"nvcc": "12.9"}),
    }
    assert len(others | {base}) == 4
