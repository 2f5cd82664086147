"""The seccomp program of a child, assembled from `tables`: bytes that the kernel takes, for one machine and one pid.

`enter` installs it. This module never calls the kernel: the same arguments give the same bytes anywhere.

Instructions are classic BPF as in linux/filter.h (u16 code, u8 jump if true, u8 jump if false, u32 constant) over
struct seccomp_data of linux/seccomp.h: number at byte 0, architecture at 4, six u64 arguments from 16 on, low half
first on both machines.
"""

from __future__ import annotations

import struct
from typing import Final

from enclaved.sandbox.tables import (
    AUDIT_ARCHITECTURE,
    ENOSYS,
    NEWEST_KNOWN_CALL,
    REFUSED_ERRNO,
    X32_BIT,
    Allow,
    Check,
    Machine,
    absent_numbers,
    allowed_numbers,
)

KILL_PROCESS: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000

LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_AT_LEAST: Final = 0x35
RETURN: Final = 0x06

INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS

Instruction = tuple[int, int, int, int]
_REFUSE: Final[Instruction] = (RETURN, 0, 0, ERRNO | REFUSED_ERRNO)
_ABSENT: Final[Instruction] = (RETURN, 0, 0, ERRNO | ENOSYS)
_PERMIT: Final[Instruction] = (RETURN, 0, 0, ALLOW)


def program(
    machine: Machine, own_pid: int, *, extra_calls: frozenset[str] = frozenset(), any_ioctl: bool = False
) -> tuple[Instruction, ...]:
    """The instructions. Raises ValueError for an extra call that no child may have.

    1. another architecture (32-bit calls on a 64-bit kernel): the process is killed
    2. x86-64: the numbers of the x32 ABI are refused
    3. allowed calls: permitted, if the conditions on their arguments hold, else refused
    4. calls with an older way beside them, and numbers above the newest known: ENOSYS
    5. all others: refused
    """
    code: list[Instruction] = [
        (LOAD_WORD, 0, 0, 4),
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCHITECTURE[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD_WORD, 0, 0, 0),
    ]
    if machine == "x86_64":
        code += [(JUMP_IF_AT_LEAST, 0, 1, X32_BIT), _REFUSE]
    allowed = allowed_numbers(machine, own_pid, extra_calls=extra_calls, any_ioctl=any_ioctl)
    for number, condition in allowed.items():
        code += _when(number, _permit_if(condition))
    for number in sorted(absent_numbers(machine, extra_calls=extra_calls)):
        code += _when(number, [_ABSENT])
    code += [(JUMP_IF_AT_LEAST, 0, 1, NEWEST_KNOWN_CALL + 1), _ABSENT, _REFUSE]
    return tuple(code)


def encoded(instructions: tuple[Instruction, ...]) -> bytes:
    """The instructions as the kernel reads them, 8 bytes each, in the byte order of this machine."""
    if len(instructions) > INSTRUCTIONS_MAX:
        raise ValueError(f"{len(instructions)} instructions; the kernel takes {INSTRUCTIONS_MAX}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """`block`, which always returns, for one call number; the number stays loaded for whom it isn't."""
    return [(JUMP_IF_EQUAL, 0, len(block), number), *block]


def _permit_if(condition: Allow) -> list[Instruction]:
    code: list[Instruction] = []
    for check in condition:
        code += _refuse_unless(check)
    return [*code, _PERMIT]


def _refuse_unless(check: Check) -> list[Instruction]:
    """Returns a refusal when the check fails, else runs past its end."""
    head: list[Instruction] = [(LOAD_WORD, 0, 0, 16 + 8 * check.argument + (4 if check.high else 0))]
    if check.mask != 0xFFFFFFFF:
        head.append((AND, 0, 0, check.mask))
    compare: list[Instruction] = []
    for index, value in enumerate(check.values):
        to_refusal = len(check.values) - 1 - index
        past_it = to_refusal + 1
        is_last = to_refusal == 0
        if check.negated:
            compare.append((JUMP_IF_EQUAL, to_refusal, past_it if is_last else 0, value))
        else:
            compare.append((JUMP_IF_EQUAL, past_it, 0, value))
    return [*head, *compare, _REFUSE]
