from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest

from enclaved.sandbox import tables
from enclaved.sandbox.tables import Check, Machine

X86_64_HEADERS = [Path(f"/usr/include/{folder}asm/unistd_64.h") for folder in ("x86_64-linux-gnu/", "")]
GENERIC_HEADERS = [Path("/usr/include/asm-generic/unistd.h")]

ALL_CALLS = {**tables.ALLOWED_CALLS, **tables.ABSENT_CALLS, **tables.REFUSED_CALLS}


def header_text(candidates: list[Path]) -> str:
    for path in candidates:
        if path.exists():
            return path.read_text(encoding="utf-8")
    pytest.skip(f"no {candidates[0]}: the kernel's headers are not installed")


def compare(numbers: dict[str, int], column: int) -> None:
    newest = max(numbers.values())
    compared = 0
    for name, row in ALL_CALLS.items():
        number = row[column]
        if number is None:
            assert name not in numbers, f"{name} exists on this machine as {numbers[name]}"
        elif name in numbers:
            assert numbers[name] == number, name
            compared += 1
        else:
            assert number > newest, f"{name} is not in headers that know calls up to {newest}"
    assert compared > 100


def test_x86_64_numbers_are_those_of_the_kernel_headers() -> None:
    text = header_text(X86_64_HEADERS)
    compare({name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}, 0)


def test_aarch64_numbers_are_those_of_the_kernel_headers() -> None:
    text = header_text(GENERIC_HEADERS)
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    # What 64-bit machines call newfstatat is numbered as fstatat; sync_file_range2 and the like are aliases at the end.
    numbers["newfstatat"] = numbers["fstatat"]
    numbers.pop("arch_specific_syscall", None)
    numbers.pop("syscalls", None)
    compare(numbers, 1)


def test_no_number_stands_for_two_calls() -> None:
    for column in (0, 1):
        numbers = [row[column] for row in ALL_CALLS.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_no_call_is_in_two_tables() -> None:
    assert len(ALL_CALLS) == len(tables.ALLOWED_CALLS) + len(tables.ABSENT_CALLS) + len(tables.REFUSED_CALLS)


def test_no_number_is_above_the_newest_known() -> None:
    assert max(number for row in ALL_CALLS.values() for number in row if number is not None) <= tables.NEWEST_KNOWN_CALL


@pytest.mark.skipif(sys.platform != "linux", reason="numbers of Linux")
def test_the_errors_are_the_ones_meant() -> None:
    assert errno.errorcode[tables.ENOSYS] == "ENOSYS"
    assert errno.errorcode[tables.REFUSED_ERRNO] == "ENOANO"


@pytest.mark.parametrize(
    ("abi", "file_rights", "network_rights", "scopes", "attribute_bytes"),
    [
        (1, 0x1FFF, 0, 0, 8),
        (2, 0x3FFF, 0, 0, 8),
        (3, 0x7FFF, 0, 0, 8),
        (4, 0x7FFF, 3, 0, 16),
        (5, 0xFFFF, 3, 0, 16),
        (6, 0xFFFF, 3, 3, 24),
        (7, 0xFFFF, 3, 3, 24),
        (8, 0xFFFF, 3, 3, 24),
        (9, 0x1FFFF, 3, 3, 24),
        (10, 0x1FFFF, 15, 3, 24),
        (11, 0x1FFFF, 15, 3, 24),
    ],
)
def test_every_abi_handles_all_that_it_knows(
    abi: int, file_rights: int, network_rights: int, scopes: int, attribute_bytes: int
) -> None:
    assert tables.landlock_masks(abi) == tables.LandlockMasks(file_rights, network_rights, scopes, attribute_bytes)


def test_a_newer_kernel_gets_the_bits_known_here_and_no_others() -> None:
    assert tables.landlock_masks(99) == tables.landlock_masks(tables.NEWEST_LANDLOCK_ABI)


def test_there_is_no_landlock_before_abi_1() -> None:
    with pytest.raises(ValueError, match="the first one is 1"):
        tables.landlock_masks(0)


@pytest.mark.parametrize("abi", range(1, tables.NEWEST_LANDLOCK_ABI + 1))
def test_a_grant_never_asks_for_a_right_that_the_abi_does_not_handle(abi: int) -> None:
    for is_folder in (True, False):
        mask = tables.rights_mask(frozenset(tables.FILE_RIGHTS), abi, is_folder=is_folder)
        assert mask & ~tables.landlock_masks(abi).file_rights == 0


def test_a_grant_on_a_file_carries_no_right_of_folders() -> None:
    assert tables.rights_mask(frozenset({"read_file", "read_dir"}), 7, is_folder=False) == 1 << 2
    assert tables.rights_mask(frozenset({"read_file", "read_dir"}), 7, is_folder=True) == 1 << 2 | 1 << 3
    assert tables.rights_mask(frozenset({"read_dir"}), 7, is_folder=False) == 0


def test_what_an_old_abi_lacks_is_named() -> None:
    assert "TCP by seccomp only" in tables.by_filter_only(3)
    assert "TCP by seccomp only" not in tables.by_filter_only(4)
    assert tables.by_filter_only(tables.NEWEST_LANDLOCK_ABI) == ()
    assert tables.missing_rights(5) == (
        "resolve_unix",
        "bind_udp",
        "connect_send_udp",
        "abstract_unix_socket",
        "signal",
    )
    assert tables.missing_rights(11) == ()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_nothing_that_reaches_out_is_allowed(machine: Machine) -> None:
    allowed = tables.allowed_numbers(machine, 1234)
    for name in (*tables.REFUSED_CALLS, *tables.ABSENT_CALLS):
        assert tables.number_of(name, machine) not in allowed, name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_calls_with_a_condition_keep_it(machine: Machine) -> None:
    allowed = tables.allowed_numbers(machine, 1234)
    for name in tables.checks(1234, any_ioctl=False):
        number = tables.number_of(name, machine)
        if number is not None:
            assert allowed[number], name


def test_no_extra_call_reaches_beyond_the_process() -> None:
    with pytest.raises(ValueError, match="no child may have socket"):
        tables.allowed_numbers("x86_64", 1234, extra_calls=frozenset({"socket", "memfd_create"}))


def test_a_process_id_that_stands_for_many_is_refused() -> None:
    with pytest.raises(ValueError):
        tables.allowed_numbers("x86_64", 0)


def test_an_unknown_call_has_no_number() -> None:
    with pytest.raises(KeyError):
        tables.number_of("no_such_call", "x86_64")
    assert tables.number_of("stat", "aarch64") is None


THREAD_FLAGS_GLIBC = 0x3D0F00
THREAD_FLAGS_MUSL = 0x7D0F00


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (THREAD_FLAGS_GLIBC, 0, 0, 0, 0, 0), True),
        ("clone", (THREAD_FLAGS_MUSL, 0, 0, 0, 0, 0), True),
        ("clone", (17, 0, 0, 0, 0, 0), False),  # fork: SIGCHLD
        ("clone", (0x01200011, 0, 0, 0, 0, 0), False),  # fork as glibc does it
        ("clone", (0x4111, 0, 0, 0, 0, 0), False),  # vfork
        ("clone", (THREAD_FLAGS_GLIBC | 0x40000000, 0, 0, 0, 0, 0), False),  # a thread in a network of its own
        ("clone", (THREAD_FLAGS_GLIBC & ~0x10000, 0, 0, 0, 0, 0), False),
        ("openat", (0, 0, 0, 0, 0, 0), True),
        ("openat", (0, 0, 0o1001, 0, 0, 0), True),  # Landlock judges it by its write access
        ("openat", (0, 0, 0o1000, 0, 0, 0), False),
        ("openat", (0, 0, 3, 0, 0, 0), False),
        ("openat", (0, 0, 0o1003, 0, 0, 0), False),
        ("open", (0, 0o1000, 0, 0, 0, 0), False),
        ("fcntl", (3, 1030, 0, 0, 0, 0), True),
        ("fcntl", (3, 8, 77, 0, 0, 0), False),  # F_SETOWN
        ("fcntl", (3, 15, 77, 0, 0, 0), False),  # F_SETOWN_EX
        ("ioctl", (3, 0x5421, 0, 0, 0, 0), True),
        ("ioctl", (3, 0x5412, 0, 0, 0, 0), False),  # TIOCSTI
        ("ioctl", (3, 0x1_0000_5412, 0, 0, 0, 0), False),
        ("tgkill", (1234, 1240, 6, 0, 0, 0), True),
        ("tgkill", (1, 1, 9, 0, 0, 0), False),
        ("prctl", (15, 0, 0, 0, 0, 0), True),
        ("prctl", (4, 1, 0, 0, 0, 0), False),  # PR_SET_DUMPABLE
        ("prlimit64", (0, 4, 0, 0x7FFE12345678, 0, 0), True),
        ("prlimit64", (1234, 4, 0, 0x7FFE12345678, 0, 0), True),
        ("prlimit64", (1, 4, 0, 0x7FFE12345678, 0, 0), False),
        ("prlimit64", (0, 4, 0x7FFE12345678, 0, 0, 0), False),
        ("prlimit64", (0, 4, 0x7FFE00000000, 0, 0, 0), False),
        ("setpriority", (0, 0, 5, 0, 0, 0), True),
        ("setpriority", (2, 0, 5, 0, 0, 0), False),  # all processes of the user
        ("setpriority", (0, 1, 5, 0, 0, 0), False),
        ("sched_setscheduler", (1, 0, 0, 0, 0, 0), False),
    ],
)
def test_conditions_on_arguments(name: str, arguments: tuple[int, ...], expected: bool) -> None:
    conditions = tables.checks(1234, any_ioctl=False)[name]
    assert all(check.holds(arguments) for check in conditions) is expected


def test_a_driver_may_send_any_control_request_but_those_that_type_or_signal() -> None:
    (condition,) = tables.checks(1234, any_ioctl=True)["ioctl"]
    assert condition.holds((3, 0xC0104600, 0, 0, 0, 0))
    assert not condition.holds((3, 0x5412, 0, 0, 0, 0))


def test_a_check_looks_at_the_half_it_names() -> None:
    assert Check(0, (1,)).holds((0x5_0000_0001, 0, 0, 0, 0, 0))
    assert Check(0, (5,), high=True).holds((0x5_0000_0001, 0, 0, 0, 0, 0))
