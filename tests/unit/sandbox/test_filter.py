"""The assembled program is run by an interpreter written from linux/filter.h and compared with the tables."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.sandbox import filter as seccomp_filter
from enclaved.sandbox import tables
from enclaved.sandbox.filter import ALLOW, ERRNO, KILL_PROCESS
from enclaved.sandbox.tables import ABSENT_CALLS, ENOSYS, NEWEST_KNOWN_CALL, REFUSED_ERRNO, Machine

OWN_PID = 4321
MACHINES: list[Machine] = ["x86_64", "aarch64"]
REFUSED = ERRNO | REFUSED_ERRNO
ABSENT = ERRNO | ENOSYS

Arguments = tuple[int, int, int, int, int, int]
NOTHING: Arguments = (0, 0, 0, 0, 0, 0)


def interpret(program: bytes, number: int, architecture: int, arguments: Arguments) -> int:
    """Runs classic BPF over a struct seccomp_data; fails on anything that the kernel's verifier would not take."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0x7FFF00001000, *arguments)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, position, steps = 0, 0, 0
    while True:
        code, if_true, if_false, constant = instructions[position]
        steps += 1
        assert steps <= len(instructions), "jumps only go forward"
        position += 1
        match code:
            case 0x20:
                assert constant % 4 == 0
                assert constant + 4 <= len(data)
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                position += if_true if accumulator == constant else if_false
            case 0x35:
                position += if_true if accumulator >= constant else if_false
            case 0x06:
                return constant
            case _:
                raise AssertionError(f"instruction {code:#x} is not one of the filter's")


def expected(
    machine: Machine,
    number: int,
    arguments: Arguments,
    *,
    extra_calls: frozenset[str] = frozenset(),
    any_ioctl: bool = False,
) -> int:
    """The tables, read without the assembler."""
    if machine == "x86_64" and number >= 0x40000000:
        return REFUSED
    allowed = tables.allowed_numbers(machine, OWN_PID, extra_calls=extra_calls, any_ioctl=any_ioctl)
    if number in allowed:
        return ALLOW if all(check.holds(arguments) for check in allowed[number]) else REFUSED
    column = 0 if machine == "x86_64" else 1
    absent = {row[column] for name, row in ABSENT_CALLS.items() if name not in extra_calls}
    return ABSENT if number in absent or number > NEWEST_KNOWN_CALL else REFUSED


PROGRAMS = {machine: seccomp_filter.encoded(seccomp_filter.program(machine, OWN_PID)) for machine in MACHINES}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_says_what_the_tables_say_for_every_number(machine: Machine) -> None:
    architecture = tables.AUDIT_ARCHITECTURE[machine]
    for number in range(NEWEST_KNOWN_CALL + 200):
        for arguments in (NOTHING, (OWN_PID, 0, 0, 0, 0, 0), (0x3D0F00, 0x5421, 0o1000, 1, 1, 1), (2**64 - 1,) * 6):
            found = interpret(PROGRAMS[machine], number, architecture, arguments)
            assert found == expected(machine, number, arguments), (number, arguments)


INTERESTING = st.sampled_from(
    [
        0,
        1,
        3,
        4,
        8,
        15,
        0o1000,
        0o1003,
        OWN_PID,
        0x10000,
        0x3D0F00,
        0x7D0F00,
        0x5401,
        0x5412,
        0x5421,
        0x1022,
        2**32,
        2**64 - 1,
    ]
)
ARGUMENTS = st.tuples(*[INTERESTING | st.integers(0, 2**64 - 1)] * 6)
CONDITIONAL = sorted(tables.checks(OWN_PID, any_ioctl=False))


@given(
    machine=st.sampled_from(MACHINES),
    name=st.sampled_from(CONDITIONAL),
    arguments=ARGUMENTS,
    any_ioctl=st.booleans(),
    extra_calls=st.frozensets(st.sampled_from(sorted(tables.EXTRA_CALLS))),
)
def test_conditions_are_assembled_as_they_read(
    machine: Machine, name: str, arguments: Arguments, any_ioctl: bool, extra_calls: frozenset[str]
) -> None:
    instructions = seccomp_filter.program(machine, OWN_PID, extra_calls=extra_calls, any_ioctl=any_ioctl)
    program = seccomp_filter.encoded(instructions)
    for number in (tables.number_of(name, machine), *(tables.number_of(extra, machine) for extra in extra_calls)):
        if number is not None:
            found = interpret(program, number, tables.AUDIT_ARCHITECTURE[machine], arguments)
            assert found == expected(machine, number, arguments, extra_calls=extra_calls, any_ioctl=any_ioctl)


@given(machine=st.sampled_from(MACHINES), number=st.integers(0, 2**32 - 1), arguments=ARGUMENTS)
def test_any_number_gets_an_answer_of_the_tables(machine: Machine, number: int, arguments: Arguments) -> None:
    found = interpret(PROGRAMS[machine], number, tables.AUDIT_ARCHITECTURE[machine], arguments)
    assert found == expected(machine, number, arguments)


@given(machine=st.sampled_from(MACHINES), architecture=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1))
def test_another_architecture_kills_the_process(machine: Machine, architecture: int, number: int) -> None:
    if architecture != tables.AUDIT_ARCHITECTURE[machine]:
        assert interpret(PROGRAMS[machine], number, architecture, NOTHING) == KILL_PROCESS


def test_32_bit_calls_on_a_64_bit_kernel_kill_the_process() -> None:
    assert interpret(PROGRAMS["x86_64"], 1, 0x40000003, NOTHING) == KILL_PROCESS
    assert interpret(PROGRAMS["aarch64"], 1, 0x40000028, NOTHING) == KILL_PROCESS


def test_x32_numbers_are_refused_where_the_same_plain_number_is_allowed() -> None:
    architecture = tables.AUDIT_ARCHITECTURE["x86_64"]
    assert interpret(PROGRAMS["x86_64"], 0, architecture, NOTHING) == ALLOW
    assert interpret(PROGRAMS["x86_64"], 0x40000000, architecture, NOTHING) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_far_below_what_the_kernel_takes(machine: Machine) -> None:
    assert len(PROGRAMS[machine]) // 8 < seccomp_filter.INSTRUCTIONS_MAX // 4


def test_a_program_that_the_kernel_would_not_take_is_refused_here() -> None:
    with pytest.raises(ValueError):
        seccomp_filter.encoded(((0x06, 0, 0, ALLOW),) * (seccomp_filter.INSTRUCTIONS_MAX + 1))


@pytest.mark.parametrize("machine", MACHINES)
def test_every_path_ends_in_a_return_and_every_jump_in_the_program(machine: Machine) -> None:
    instructions = seccomp_filter.program(machine, OWN_PID)
    assert instructions[-1][0] == 0x06
    for position, (code, if_true, if_false, _) in enumerate(instructions):
        if code in (0x15, 0x35):
            assert position + 1 + max(if_true, if_false) < len(instructions)
