"""Which paths a child may open and how, and which calls it has beyond the usual: the `Profile` that `enter` applies.

`python_profile` builds the one that a Python child needs to import its libraries. It looks at the interpreter's own
paths, opens nothing, and never grants a folder that holds the user's home. A model is in no profile: it comes as an
open file.

What a worker touches was measured with strace (CPython 3.11, llama.cpp, onnxruntime, tokenizers, numpy): the
interpreter, the system's libraries, locale and time zone, the OpenSSL settings, and a few files about this machine's
processors.
"""
# pathlib takes longer to load (2.6 ms) than the walls to go up (1.5 ms).
# ruff: noqa: PTH110, PTH112, PTH117

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from enclaved.sandbox.tables import ChildKind

Access = Literal["read", "list", "read+list", "read+write", "device"]

ACCESS_RIGHTS: Final[Mapping[Access, frozenset[str]]] = {
    "read": frozenset({"read_file"}),
    "list": frozenset({"read_dir"}),
    "read+list": frozenset({"read_file", "read_dir"}),
    "read+write": frozenset({"read_file", "write_file"}),
    "device": frozenset({"read_file", "write_file", "ioctl_dev"}),
}

SYSTEM_GRANTS: Final[tuple[tuple[str, Access], ...]] = (
    ("/usr/lib", "read+list"),
    ("/usr/lib64", "read+list"),
    ("/lib", "read+list"),
    ("/lib64", "read+list"),
    ("/etc/ld.so.cache", "read"),
    ("/etc/localtime", "read"),
    ("/usr/share/locale", "read+list"),
    ("/usr/share/zoneinfo", "read+list"),
    ("/usr/lib/ssl/openssl.cnf", "read"),
    ("/etc/ssl/openssl.cnf", "read"),
    ("/etc/pki/tls/openssl.cnf", "read"),
    ("/proc/cpuinfo", "read"),
    ("/proc/meminfo", "read"),
    # Not all of /proc/self: its `net` lists every connection and unix socket of the user.
    ("/proc/self/status", "read"),
    ("/proc/self/stat", "read"),
    ("/proc/self/statm", "read"),
    ("/proc/self/maps", "read"),
    ("/proc/self/task", "list"),
    ("/sys/devices/system/cpu", "read+list"),
    ("/sys/devices/system/node", "read+list"),
    ("/dev/urandom", "read"),
    ("/dev/zero", "read"),
    ("/dev/null", "read+write"),
)


class ProfileError(ValueError):
    """A profile that would open too much; the message names the path and says what to change."""


@dataclass(frozen=True)
class Grant:
    """One path that a child may open, and how. A folder's grant holds for everything beneath it.

    `list` is names only. `device` adds control requests and is for device nodes. Nothing grants executing, creating,
    removing or truncating.
    """

    path: str
    access: Access

    def __post_init__(self) -> None:
        if not os.path.isabs(self.path):
            raise ProfileError(f"a grant needs an absolute path, not {self.path!r}")


@dataclass(frozen=True)
class Profile:
    """What one child may reach."""

    kind: ChildKind
    """An inspector reads hostile files all day and runs no model, so it has neither devices nor extra calls."""
    grants: tuple[Grant, ...] = ()
    """Paths that don't exist when the walls go up are left out."""
    extra_calls: frozenset[str] = frozenset()
    """Names from `tables.EXTRA_CALLS` that a backend declares it needs."""
    any_ioctl: bool = False
    """For drivers of GPUs: their control requests can't be listed, so such a child's wall is weaker, and says so."""

    def __post_init__(self) -> None:
        devices = [grant.path for grant in self.grants if grant.access == "device"]
        if self.kind == "inspector" and (devices or self.extra_calls or self.any_ioctl):
            raise ProfileError("an inspector gets no devices, no extra calls and no open control requests")


def python_profile(
    kind: ChildKind,
    *,
    private_folders: Sequence[str],
    package_folders: Sequence[str] = (),
    extra: Iterable[Grant] = (),
    extra_calls: frozenset[str] = frozenset(),
    any_ioctl: bool = False,
    prefixes: Sequence[str] | None = None,
    module_paths: Sequence[str] | None = None,
) -> Profile:
    """The profile of a Python child: interpreter, libraries, the machine's processors, and what `extra` adds.

    `private_folders` are the user's home (from the daemon: the child's own HOME is made up) and whatever else no grant
    may contain. A prefix below the home is normal (pyenv, pipx, a virtual environment); one equal to it or above is
    refused.

    `package_folders` are packages outside the prefixes, as editable installs have them; they are readable whole, while
    a sys.path entry outside the prefixes only shows names; a relative one is left out. `prefixes` and `module_paths`
    default to this interpreter's.

    Raises ProfileError.
    """
    roots = _distinct(prefixes if prefixes is not None else (sys.base_prefix, sys.prefix, sys.exec_prefix))
    entries = module_paths if module_paths is not None else sys.path
    grants = [Grant(root, "read+list") for root in roots]
    grants += [Grant(path, access) for path, access in SYSTEM_GRANTS]
    outside = [entry for entry in _distinct(entries) if os.path.isabs(entry) and not _is_within_any(entry, roots)]
    grants += [Grant(entry, "list" if os.path.isdir(entry) else "read") for entry in outside if os.path.exists(entry)]
    grants += [Grant(folder, "read+list") for folder in _distinct(package_folders)]
    grants += extra
    for grant in grants:
        _refuse_if_it_holds(grant.path, private_folders)
    return Profile(kind, tuple(grants), extra_calls=extra_calls, any_ioctl=any_ioctl)


def _refuse_if_it_holds(path: str, private_folders: Sequence[str]) -> None:
    real = os.path.realpath(path)
    for folder in private_folders:
        if not os.path.isabs(folder):
            raise ProfileError(f"a private folder needs an absolute path, not {folder!r}")
        # An account without a home often has a device or a file there (/dev/null): nothing lies beneath it.
        if os.path.exists(folder) and not os.path.isdir(folder):
            continue
        if _is_within(os.path.realpath(folder), real):
            raise ProfileError(
                f"{path} would open {folder} to the child: it is that folder or holds it. "
                f"Install Enclave in a virtual environment of its own, outside or below {folder}"
            )


def _is_within_any(path: str, folders: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(_is_within(real, os.path.realpath(folder)) for folder in folders)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _distinct(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))
