"""Starts a child on this machine: an environment made for it, one inherited socket, nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ChildKind = Literal["worker", "inspector"]

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES")
_MADE_VARIABLES = {
    "HOME": "/nonexistent",
    "OPENBLAS_NUM_THREADS": "1",
    "GGML_NO_BACKTRACE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_CACHE_DISABLE": "1",
}
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from enclaved.worker.main import main; main(sys.argv[1])"
)
"""Run with -I -S, so that neither the environment nor any .pth file runs code of others before the walls stand."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is to be."""

    kind: ChildKind
    packages: tuple[str, ...]
    """Top-level packages it must be able to import, beside those in the interpreter's own folders."""
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launched:
    """A child's process and the daemon's end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """No tokens, no proxies, no home: only what a child needs."""
    return {name: environment[name] for name in _KEPT_VARIABLES if name in environment} | _MADE_VARIABLES


def launch(spec: ChildSpec, environment: Mapping[str, str], private_folders: Sequence[str]) -> Launched:
    """Starts a child. Must be called in the thread that lives as long as the daemon: a child ends with the thread that
    started it. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        options = {
            "kind": spec.kind,
            "channel": theirs.fileno(),
            "parent": os.getpid(),
            "prefixes": sorted({sys.prefix, sys.base_prefix, sys.exec_prefix}),
            "package_folders": package_folders(spec.packages),
            "private_folders": list(private_folders),
            "preload": list(spec.preload),
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(options), json.dumps(_absolute(sys.path))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(environment),
            pass_fds=(theirs.fileno(),),
            cwd="/",
            # Ctrl-C in the daemon's terminal is for the daemon, which then ends its children in order.
            process_group=0,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Launched(process, ours)


def _absolute(entries: Sequence[str]) -> list[str]:
    """The child starts in another folder than the daemon did."""
    return [str(Path(entry).absolute()) for entry in entries]


def package_folders(packages: Sequence[str]) -> list[str]:
    """The folders of packages, without importing them."""
    from importlib.util import find_spec

    folders: list[str] = []
    for package in packages:
        spec = find_spec(package)
        folders += [str(Path(location)) for location in (spec.submodule_search_locations or ()) if spec] if spec else []
    return folders
