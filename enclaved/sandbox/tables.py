"""What the kernel can refuse and what a child is left with: Landlock's rights by ABI, system call numbers, the
allow-list.

Pure data and the functions that read it; `filter` turns it into a program, `enter` applies it. It never asks the
machine anything.

Sources: linux/landlock.h and landlock(7) for the rights; asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64)
for the numbers, which a test compares with the headers of the machine it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Machine = Literal["x86_64", "aarch64"]
ChildKind = Literal["worker", "inspector"]

# ---- Landlock ----

NEWEST_LANDLOCK_ABI: Final = 11

FILE_RIGHTS: Final[Mapping[str, tuple[int, int]]] = {
    # name: (bit, first ABI that knows it)
    "execute": (0, 1),
    "write_file": (1, 1),
    "read_file": (2, 1),
    "read_dir": (3, 1),
    "remove_dir": (4, 1),
    "remove_file": (5, 1),
    "make_char": (6, 1),
    "make_dir": (7, 1),
    "make_reg": (8, 1),
    "make_sock": (9, 1),
    "make_fifo": (10, 1),
    "make_block": (11, 1),
    "make_sym": (12, 1),
    "refer": (13, 2),
    "truncate": (14, 3),
    "ioctl_dev": (15, 5),
    "resolve_unix": (16, 9),
}
NETWORK_RIGHTS: Final[Mapping[str, tuple[int, int]]] = {
    "bind_tcp": (0, 4),
    "connect_tcp": (1, 4),
    "bind_udp": (2, 10),
    "connect_send_udp": (3, 10),
}
SCOPES: Final[Mapping[str, tuple[int, int]]] = {
    "abstract_unix_socket": (0, 6),
    "signal": (1, 6),
}

# The only rights that the kernel takes in a rule on something that is not a folder; others there are EINVAL.
RIGHTS_ON_A_FILE: Final = frozenset({"execute", "write_file", "read_file", "truncate", "ioctl_dev"})

# What the filter alone has to hold while Landlock is older than the ABI named: (promise in plain words, ABI).
SECOND_WALLS: Final[tuple[tuple[str, int], ...]] = (
    ("moving files between folders", 2),
    ("truncating files", 3),
    ("TCP", 4),
    ("device controls", 5),
    ("abstract unix sockets", 6),
    ("signals", 6),
    ("path unix sockets", 9),
    ("UDP", 10),
)


@dataclass(frozen=True)
class LandlockMasks:
    """What to hand to landlock_create_ruleset for one ABI: everything that it knows is refused unless a rule grants
    it."""

    file_rights: int
    network_rights: int
    scopes: int
    attribute_bytes: int
    """Size of struct landlock_ruleset_attr that this ABI takes: 8, 16 or 24."""


def landlock_masks(abi: int) -> LandlockMasks:
    """All rights that `abi` knows, as masks. A kernel newer than this table gets the bits of the newest ABI known
    here."""
    if abi < 1:
        raise ValueError(f"Landlock ABI {abi}: the first one is 1")
    return LandlockMasks(
        file_rights=_mask(FILE_RIGHTS, abi),
        network_rights=_mask(NETWORK_RIGHTS, abi),
        scopes=_mask(SCOPES, abi),
        attribute_bytes=8 if abi < 4 else 16 if abi < 6 else 24,
    )


def rights_mask(names: frozenset[str], abi: int, *, is_folder: bool) -> int:
    """The bits of the file rights `names`, without those that `abi` lacks or that a rule on a plain file may not
    carry."""
    kept = names if is_folder else names & RIGHTS_ON_A_FILE
    return sum(1 << FILE_RIGHTS[name][0] for name in kept if FILE_RIGHTS[name][1] <= abi)


def by_filter_only(abi: int) -> tuple[str, ...]:
    """What Landlock at `abi` leaves to the filter alone, in plain words; ABI 0 is a kernel without Landlock."""
    return tuple(f"{promise} by seccomp only" for promise, since in SECOND_WALLS if abi < since)


def missing_rights(abi: int) -> tuple[str, ...]:
    """Names of the rights and scopes in this table that `abi` doesn't know."""
    tables = (FILE_RIGHTS, NETWORK_RIGHTS, SCOPES)
    return tuple(name for table in tables for name, (_, since) in table.items() if since > abi)


def _mask(table: Mapping[str, tuple[int, int]], abi: int) -> int:
    return sum(1 << bit for bit, since in table.values() if since <= abi)


# ---- system calls ----

# Above this number nothing is known here: such a call answers ENOSYS, so that libraries fall back to an older one.
NEWEST_KNOWN_CALL: Final = 469
X32_BIT: Final = 0x40000000

ENOSYS: Final = 38
# What the filter answers to a call that is known and not allowed. The kernel itself gives ENOANO for none of them, so
# who sees it knows that the filter spoke, also where an ordinary user would have been refused anyway (ptrace, bpf,
# mount, ...).
REFUSED_ERRNO: Final = 55

AUDIT_ARCHITECTURE: Final[Mapping[Machine, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86-64, aarch64); None where the machine lacks the call. The first few are what a decoding worker calls most.
ALLOWED_CALLS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "futex": (202, 98),
    "read": (0, 63),
    "write": (1, 64),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "clock_gettime": (228, 113),
    "sched_yield": (24, 124),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "madvise": (28, 233),
    "openat": (257, 56),
    "close": (3, 57),
    # files: Landlock decides which
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "lseek": (8, 62),
    "fcntl": (72, 25),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "open": (2, None),
    "newfstatat": (262, 79),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "ioctl": (16, 29),
    "fadvise64": (221, 223),
    # memory
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "mincore": (27, 232),
    "msync": (26, 227),
    "mlock": (149, 228),
    "munlock": (150, 229),
    "brk": (12, 214),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236),
    "membarrier": (324, 283),
    # threads
    "clone": (56, 220),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "tgkill": (234, 131),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_getattr": (315, 275),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_setscheduler": (144, 119),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "getpriority": (140, 141),
    "setpriority": (141, 140),
    "getcpu": (309, 168),
    "prctl": (157, 167),
    "arch_prctl": (158, None),
    # signals to itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # time
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "times": (100, 153),
    # waiting
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "eventfd2": (290, 19),
    # the socket that the child inherited; no call makes, binds or connects one
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    # who and where it is
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "prlimit64": (302, 261),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
}

# Calls with an older way beside them: ENOSYS sends the C library and others there. glibc falls back from clone3 to
# clone and from faccessat2 to faccessat on ENOSYS alone. clone3 cannot be allowed: its flags lie in memory, where no
# filter looks.
ABSENT_CALLS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "faccessat2": (439, 439),
    "process_madvise": (440, 440),
    "futex_waitv": (449, 449),
    "set_mempolicy_home_node": (450, 450),
    "cachestat": (451, 451),
    "map_shadow_stack": (453, 453),
    "futex_wake": (454, 454),
    "futex_wait": (455, 455),
    "futex_requeue": (456, 456),
    "mseal": (462, 462),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "copy_file_range": (326, 285),
    "pkey_mprotect": (329, 288),
    "pkey_alloc": (330, 289),
    "pkey_free": (331, 290),
    "mlock2": (325, 284),
}

# Refused for every CPU worker; named here because probes call them by number or a plugin may ask for one
# (`extra_calls`).
REFUSED_CALLS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "kill": (62, 129),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_open": (434, 434),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "mount": (165, 40),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "memfd_create": (319, 279),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setxattr": (188, 5),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "sched_setattr": (314, 274),
    # the calls that build the walls
    "capset": (126, 91),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}

# What a backend may ask for beyond the list: memory of its own. Nothing that reaches another process, a file or a
# network.
EXTRA_CALLS: Final = frozenset(
    {"memfd_create", "ftruncate", "fallocate", "mlock2", "pkey_mprotect", "pkey_alloc", "pkey_free"}
)


@dataclass(frozen=True)
class Check:
    """A condition on one argument of an allowed call: (word & mask) is in `values`, or is not when `negated`.

    The word is the low half of the 64-bit argument unless `high`: the kernel itself takes only 32 bits of every
    argument checked here except pointers, for which both halves are checked.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    negated: bool = False
    high: bool = False

    def holds(self, arguments: tuple[int, ...]) -> bool:
        """Whether a call with these six 64-bit arguments meets the condition."""
        word = (arguments[self.argument] >> (32 if self.high else 0)) & 0xFFFFFFFF
        return ((word & self.mask) in self.values) != self.negated


Allow = tuple[Check, ...]
"""Checks that must all hold; none for a call that is allowed whatever its arguments."""

# linux/sched.h: what a pthread is made of. musl adds CLONE_DETACHED, which the kernel ignores.
_CLONE_THREAD: Final = 0x00010000
_CLONE_OF_A_PTHREAD: Final = (
    0x00000100  # VM
    | 0x00000200  # FS
    | 0x00000400  # FILES
    | 0x00000800  # SIGHAND
    | _CLONE_THREAD
    | 0x00040000  # SYSVSEM
    | 0x00080000  # SETTLS
    | 0x00100000  # PARENT_SETTID
    | 0x00200000  # CHILD_CLEARTID
    | 0x00400000  # DETACHED
)
_O_ACCMODE: Final = 0o3
_O_TRUNC: Final = 0o1000
# F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC F_GET_SEALS. Not F_SETOWN: with F_SETSIG it sends any signal
# to any process of the user, which Landlock refuses only from ABI 6 on.
_FCNTL_COMMANDS: Final = (0, 1, 2, 3, 4, 1030, 1034)
# FIOCLEX FIONBIO FIONREAD TCGETS TCGETS2: the last two are isatty, by the age of the C library
_IOCTL_REQUESTS: Final = (0x5451, 0x5421, 0x541B, 0x5401, 0x802C542A)
# Never, not even for a driver: TIOCSTI and TIOCLINUX type into a terminal, FIOSETOWN and SIOCSPGRP aim signals.
_IOCTL_NEVER: Final = (0x5412, 0x541C, 0x8901, 0x8902)
# PR_SET_NAME PR_GET_NAME PR_SVE_GET_VL PR_SME_GET_VL: a thread's name; how wide this CPU's vectors are (ggml asks on
# ARM)
_PRCTL_OPTIONS: Final = (15, 16, 51, 64)
# ARCH_GET_XCOMP_SUPP ARCH_GET_XCOMP_PERM ARCH_REQ_XCOMP_PERM: asking for AMX tiles, without which ggml and oneDNN lose
# them
_ARCH_PRCTL_OPTIONS: Final = (0x1021, 0x1022, 0x1023)


def _open_checks(argument: int) -> Allow:
    """Landlock before ABI 3 misses O_TRUNC without write access, and every ABI misses access mode 3 (control only)."""
    reading_truncation, mode_3 = _O_TRUNC, _O_ACCMODE
    return (Check(argument, (reading_truncation, mode_3, mode_3 | _O_TRUNC), _O_ACCMODE | _O_TRUNC, negated=True),)


def checks(own_pid: int, *, any_ioctl: bool) -> Mapping[str, Allow]:
    """The conditions on arguments, by call; an allowed call that is not here is allowed with any.

    `own_pid` is the pid that the child sees of itself. `any_ioctl` is for drivers of GPUs, whose requests can't be
    listed.
    """
    own = (0, own_pid)
    return {
        "clone": (Check(0, (_CLONE_THREAD,), 0xFFFFFFFF & ~_CLONE_OF_A_PTHREAD | _CLONE_THREAD),),
        "open": _open_checks(1),
        "openat": _open_checks(2),
        "fcntl": (Check(1, _FCNTL_COMMANDS),),
        "ioctl": (Check(1, _IOCTL_NEVER, negated=True),) if any_ioctl else (Check(1, _IOCTL_REQUESTS),),
        "tgkill": (Check(0, (own_pid,)),),
        "prctl": (Check(0, _PRCTL_OPTIONS),),
        "arch_prctl": (Check(0, _ARCH_PRCTL_OPTIONS),),
        "prlimit64": (Check(0, own), Check(2, (0,)), Check(2, (0,), high=True)),
        "setpriority": (Check(0, (0,)), Check(1, own)),
        "sched_setscheduler": (Check(0, own),),
    }


def number_of(name: str, machine: Machine) -> int | None:
    """The number of a call on a machine; None where the machine lacks it. Raises KeyError for a name not in the
    tables."""
    for table in (ALLOWED_CALLS, ABSENT_CALLS, REFUSED_CALLS):
        if name in table:
            return table[name][0 if machine == "x86_64" else 1]
    raise KeyError(name)


def allowed_numbers(
    machine: Machine, own_pid: int, *, extra_calls: frozenset[str] = frozenset(), any_ioctl: bool = False
) -> dict[int, Allow]:
    """Every allowed call of a child by number, in the order in which the filter looks, with its conditions.

    Raises ValueError for an extra call that no child may have.
    """
    if own_pid < 1:
        raise ValueError(f"a process id of {own_pid} would let the checks on signals match other processes")
    if forbidden := extra_calls - EXTRA_CALLS:
        raise ValueError(
            f"no child may have {', '.join(sorted(forbidden))}; can be had: {', '.join(sorted(EXTRA_CALLS))}"
        )
    conditions = checks(own_pid, any_ioctl=any_ioctl)
    names = (*ALLOWED_CALLS, *sorted(extra_calls))
    numbered = ((number_of(name, machine), conditions.get(name, ())) for name in names)
    return {number: condition for number, condition in numbered if number is not None}


def absent_numbers(machine: Machine, *, extra_calls: frozenset[str] = frozenset()) -> frozenset[int]:
    """Numbers of known calls that answer ENOSYS."""
    numbers = (number_of(name, machine) for name in ABSENT_CALLS if name not in extra_calls)
    return frozenset(number for number in numbers if number is not None)
