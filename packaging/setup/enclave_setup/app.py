"""Makes `.venv` what `requirements.lock` and the workspace's `pyproject.toml` files say; `make setup` calls `main`.

1. A virtual environment, with the uv that the lock names.
2. Everything in the lock but llama.cpp, from wheels.
3. llama.cpp, compiled for this machine; uv keeps the wheel in its cache under the settings of the build.
4. The workspace's distributions, as path entries; then byte code for all of it, so that programs start fast.

Each step may be interrupted and is done again by the next run. What was reached is noted in `.venv/setup`, so a run
with nothing to do ends after reading a few files. Nothing outside `.venv` is written but the package client's cache.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from enclave_setup import build_log, client, gpu, identity, lock
from enclave_setup.failure import SetupError

ROOT = Path(__file__).resolve().parents[3]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
NOTES = VENV / "setup"
LOCK_FILE = ROOT / "requirements.lock"
LLAMA = "llama-cpp-python"
# Measured for a build without a GPU on an x86-64 server, 2025: 390 seconds of CPU time.
BUILD_CPU_MINUTES = 7
# What uv says when the sources were there and did not build; other failures mean that they were not there.
BUILD_FAILED = "build backend returned an error"


def main(arguments: Sequence[str]) -> int:
    """Set up, or with `lock` make `requirements.lock` anew; returns the exit status."""
    parser = argparse.ArgumentParser(prog="setup", description="Sets up Enclave's development environment in .venv.")
    parser.add_argument("--gpu", default="", help=f"{', '.join(gpu.WISHES)}; empty: as last time, else auto")
    parser.add_argument("--this-python", action="store_true", help="make .venv anew if it has another Python")
    parser.add_argument("command", nargs="?", choices=("install", "lock"), default="install")
    options = parser.parse_args(arguments)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        if options.command == "lock":
            make_lock()
        else:
            install(options.gpu, options.this_python)
    except SetupError as error:
        print(f"setup: {error.message}\n       {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again to go on.", file=sys.stderr)
        return 130
    return 0


def install(wish: str, this_python: bool) -> None:
    """Bring `.venv` up to date. `wish` is what was asked of the GPU this time, empty if nothing was."""
    if wish and wish not in gpu.WISHES:
        raise SetupError(f"GPU={wish} is not known.", f"Choose one of: {', '.join(gpu.WISHES)}")
    started = time.monotonic()
    projects = workspace()
    cpu = identity.read_cpu()
    inputs = inputs_digest(projects, cpu)
    if not wish and not this_python and is_current(inputs):
        return
    with _alone():
        ready = _read_note("ready")
        wish_now = wish or str(ready.get("wish") or "auto")
        choice = gpu.decide(wish_now, found := gpu.look())
        if is_current(inputs) and _has_python(this_python) and ready.get("choice") == choice.kind and wish:
            _say(f"nothing to do; llama.cpp: {choice.why}")
            _write_note("ready", {**ready, "wish": wish_now})
            return
        (NOTES / "ready.json").unlink(missing_ok=True)
        _make_environment(this_python)
        environment = _client_environment()
        _install_uv(environment)
        _install_wheels(environment)
        _install_llama(choice, found, cpu, environment, try_again=bool(wish))
        _remove_surplus(projects, environment)
        _install_workspace(projects, environment)
        _write_note("ready", {"inputs": inputs, "wish": wish_now, "choice": choice.kind})
    _say(f"ready after {time.monotonic() - started:.0f} s; .venv/bin/enclave --help says what there is")


def workspace() -> dict[Path, Mapping[str, Any]]:
    """The parsed `pyproject.toml` of each distribution in this repository, by its folder, the root's first."""
    folders = [
        ROOT,
        *sorted(path.parent for area in ("clients", "plugins") for path in ROOT.glob(f"{area}/*/pyproject.toml")),
    ]
    return {folder: tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")) for folder in folders}


def inputs_digest(projects: Mapping[Path, object], cpu: Mapping[str, str]) -> str:
    """A digest of all that decides what `.venv` should be, but for the GPU wish."""
    sources = Path(__file__).parent.glob("*.py")
    files = [LOCK_FILE, *(folder / "pyproject.toml" for folder in projects), *sorted(sources)]
    inputs = hashlib.sha256(f"{ROOT}\n{identity.digest(cpu, os.environ, {})}\n".encode())
    for file in files:
        if not file.is_file():
            raise SetupError(
                f"{file.relative_to(ROOT)} is missing.", "Restore it: git checkout " + str(file.relative_to(ROOT))
            )
        content = file.read_bytes()
        inputs.update(f"{file.relative_to(ROOT)} {len(content)}\n".encode())
        inputs.update(content)
    return inputs.hexdigest()


def is_current(inputs: str) -> bool:
    """Whether the last setup came to its end with these inputs, and its programs are still there."""
    return (
        _read_note("ready").get("inputs") == inputs
        and os.access(PYTHON, os.X_OK)
        and all((VENV / "bin" / program).is_file() for program in ("enclave", "enclaved"))
    )


def make_lock() -> None:
    """Write `requirements.lock` anew from the workspace's `pyproject.toml` files: newest versions that fit them."""
    uv = VENV / "bin" / "uv"
    if not uv.is_file():
        raise SetupError("make lock needs the uv that make setup installs.", "Run: make setup")
    wanted = "".join(f"{requirement}\n" for requirement in lock.to_pin(workspace().values()))
    fresh = NOTES / "requirements.lock"
    fresh.unlink(missing_ok=True)
    # Without the cache: where uv takes unchanged sources for new ones, it would forget the llama.cpp built from them.
    command = [
        str(uv), "pip", "compile", "-", "--no-cache", "--quiet", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
        "--custom-compile-command", "make lock", "--output-file", str(fresh),
    ]  # fmt: skip
    done = subprocess.run(command, input=wanted, text=True, env=_client_environment(), cwd=NOTES, check=False)
    if done.returncode != 0:
        raise SetupError("uv could not resolve the requirements (above).", "Is the network there? Do the bounds agree?")
    LOCK_FILE.write_text(fresh.read_text(encoding="utf-8"), encoding="utf-8")
    fresh.unlink()
    _say("requirements.lock is new; make setup installs it")


def _make_environment(this_python: bool) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if _has_python(this_python) and _succeeds(str(PYTHON), "-m", "pip", "--version"):
        return
    if not _succeeds(sys.executable, "-c", "import ensurepip, venv"):
        raise SetupError(
            f"{sys.executable} has no venv or no ensurepip.",
            f"Debian and Ubuntu: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv. "
            "Or name another interpreter: make setup PYTHON=/path/to/python3.12",
        )
    _say(f"Python {version}: making .venv")
    for entry in VENV.iterdir():
        if entry == NOTES:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    # Its words are for a failure only: at Ctrl-C they would be a traceback.
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if made.returncode != 0:
        print(made.stdout.decode(errors="replace"), file=sys.stderr)
        raise SetupError(
            "The virtual environment could not be made (above).",
            "Is there room on the disk? Then run make setup again.",
        )


def _has_python(this_python: bool) -> bool:
    """Whether `.venv` has a Python that starts and fits; with `this_python`, of the version that runs this."""
    wanted = sys.version_info[:2] if this_python else None
    fits = f"sys.version_info[:2] == {wanted!r}" if wanted else "(3, 11) <= sys.version_info[:2] < (3, 14)"
    return _succeeds(str(PYTHON), "-I", "-S", "-c", f"import sys; sys.exit(not ({fits}))")


def _client_environment() -> dict[str, str]:
    listing = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    environment |= client.uv_environment(client.pip_settings(listing), environment)
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return environment


def _install_uv(environment: Mapping[str, str]) -> None:
    pins = lock.subset(LOCK_FILE.read_text(encoding="utf-8"), lambda name: name == "uv")
    pinned = pins.split("==")[1].split()[0]
    uv = VENV / "bin" / "uv"
    if uv.is_file():
        said = subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=False).stdout.split()
        if said[1:2] == [pinned]:
            return
    _say(f"uv {pinned}")
    command = [
        str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", "--only-binary", ":all:", "--requirement", str(_write_pins("uv", pins)),
    ]  # fmt: skip
    _run(command, environment, "pip could not install uv (above).", "Is the network there? Then run make setup again.")


def _install_wheels(environment: Mapping[str, str]) -> None:
    _say("packages of requirements.lock")
    pins = _write_pins("wheels", lock.subset(LOCK_FILE.read_text(encoding="utf-8"), lambda name: name != LLAMA))
    _run(
        _uv("install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirements", str(pins)),
        environment,
        "uv could not install the packages (above).",
        "Is the network there? Then run make setup again.",
    )


def _install_llama(
    choice: gpu.Choice, found: gpu.Found, cpu: Mapping[str, str], environment: Mapping[str, str], try_again: bool
) -> None:
    """Build and install llama.cpp as chosen; for the CPU if that fails and the choice allows it."""
    _say(f"llama.cpp: {choice.why}")
    kind = choice.kind
    settings = _llama_settings(kind, found, cpu)
    if choice.may_fall_back and not try_again and settings in _read_note("llama").get("failed", []):
        _say(f"the {kind} build failed before, so the CPU only; to try it again: make setup GPU={kind}")
        kind = "none"
    try:
        _build_llama(kind, _llama_settings(kind, found, cpu), environment)
    except SetupError as error:
        if kind == "none" or not choice.may_fall_back:
            raise
        print(f"setup: {error.message}", file=sys.stderr)
        _say(f"the {kind} build failed, so the CPU only; to try it again: make setup GPU={kind}")
        _write_note("llama", {"failed": [settings]})
        _build_llama("none", _llama_settings("none", found, cpu), environment)


def _llama_settings(kind: str, found: gpu.Found, cpu: Mapping[str, str]) -> list[str]:
    compiler = {"nvcc": found.nvcc_version or "", "gpus": ", ".join(found.nvidia_gpus)} if kind == "cuda" else {}
    version = lock.subset(LOCK_FILE.read_text(encoding="utf-8"), lambda name: name == LLAMA).split()[0]
    defines = gpu.cmake_defines(kind) | {"ENCLAVE_BUILD_IDENTITY": identity.digest(cpu, os.environ, compiler)}
    return [version, *(f"cmake.define.{name}={value}" for name, value in defines.items())]


def _build_llama(kind: str, settings: list[str], environment: Mapping[str, str]) -> None:
    works = (str(PYTHON), "-I", "-c", "import llama_cpp")
    note = _read_note("llama")
    if note.get("installed") == settings and _succeeds(*works):
        return
    compiler = os.environ.get("CXX", "c++").split()
    if not any(_succeeds(*command, "--version") for command in (compiler, ["g++"], ["clang++"])):
        raise SetupError(
            "no C++ compiler was found, and llama.cpp is compiled for this machine.",
            "Install one: 'apt install g++', 'dnf install gcc-c++', or on macOS 'xcode-select --install'",
        )
    log = NOTES / f"llama-cpp-{kind}.log"
    minutes = max(1, round(BUILD_CPU_MINUTES / (os.cpu_count() or 1)))
    often = "longer, as it is for a GPU" if kind in {"cuda", "vulkan"} else f"about {minutes} min here"
    shown = log.relative_to(ROOT)
    _say(f"building llama.cpp: {often}, seconds if it was built before; its log is {shown}")
    pins = _write_pins("llama", lock.subset(LOCK_FILE.read_text(encoding="utf-8"), lambda name: name == LLAMA))
    configured = [part for setting in settings[1:] for part in ("--config-settings-package", f"{LLAMA}:{setting}")]
    command = _uv(
        "install", "--verbose", "--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", LLAMA,
        *configured, "--requirements", str(pins),
    )  # fmt: skip
    failed = note.get("failed", [])
    _write_note("llama", {"failed": failed})
    # Removed first, as uv's --reinstall-package would build anew what is in its cache.
    _run(
        _uv("uninstall", "--quiet", LLAMA),
        environment,
        f"uv could not remove {LLAMA} (above).",
        "Run: make clean setup",
    )
    # From the cache alone first: behind some proxies and mirrors uv takes the unchanged sources for new ones, and
    # would compile again what it has compiled before.
    what = "setup: building llama.cpp"
    status = build_log.run([*command, "--offline"], environment, log, what)
    if status != 0 and BUILD_FAILED not in log.read_text(encoding="utf-8", errors="replace"):
        status = build_log.run(command, environment, log, what)
    if status != 0:
        print(build_log.tail(log), file=sys.stderr)
        raise SetupError(f"llama.cpp could not be built (above; all of it is in {shown}).", _hint_for(kind))
    tried = subprocess.run(works, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        print(tried.stderr.strip()[-2000:], file=sys.stderr)
        raise SetupError(f"llama.cpp was built for {kind} but does not start here (above).", _hint_for(kind))
    _write_note("llama", {"installed": settings, "failed": [entry for entry in failed if entry != settings]})


def _hint_for(kind: str) -> str:
    if kind == "none":
        return (
            "Mend what the log names, often a missing compiler, memory or room on the disk; then run make setup again."
        )
    return f"Mend what the log names, or build without a GPU: make setup GPU=none (this was GPU={kind})"


def _remove_surplus(projects: Mapping[Path, Mapping[str, Any]], environment: Mapping[str, str]) -> None:
    """Remove what an earlier lock had installed."""
    listed = subprocess.run(
        _uv("list", "--format", "json", "--quiet"), env=dict(environment), capture_output=True, text=True, check=True
    )
    own = [project["project"]["name"] for project in projects.values()]
    installed = [entry["name"] for entry in json.loads(listed.stdout)]
    if surplus := lock.surplus(installed, LOCK_FILE.read_text(encoding="utf-8"), own):
        _say(f"removing what the lock does not name: {', '.join(surplus)}")
        _run(_uv("uninstall", *surplus), environment, "uv could not remove them (above).", "Run: make clean setup")


def _install_workspace(projects: Mapping[Path, object], environment: Mapping[str, str]) -> None:
    _say("the distributions of this repository")
    editables = [part for folder in projects for part in ("--editable", str(folder))]
    _run(
        _uv("install", "--no-deps", "--no-build-isolation", "--offline", "--compile-bytecode", *editables),
        environment,
        "uv could not install the repository's own distributions (above).",
        "Mend the pyproject.toml it names, then run make setup again.",
    )
    sources = [str(ROOT / name) for name in ("enclaved", "clients", "plugins")]
    # A file that doesn't compile is someone's work in progress, and tests say so better.
    _succeeds(str(PYTHON), "-m", "compileall", "-qq", *sources)


def _uv(command: str, *arguments: str) -> list[str]:
    quiet = [] if sys.stderr.isatty() or "--verbose" in arguments or "--quiet" in arguments else ["--quiet"]
    return [str(VENV / "bin" / "uv"), "pip", command, *quiet, "--python", str(PYTHON), *arguments]


def _run(command: Sequence[str], environment: Mapping[str, str], message: str, hint: str) -> None:
    if subprocess.run(command, env=dict(environment), cwd=NOTES, check=False).returncode != 0:
        raise SetupError(message, hint)


def _succeeds(*command: str) -> bool:
    try:
        return (
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
        )
    except OSError:
        return False


def _write_pins(name: str, pins: str) -> Path:
    path = NOTES / f"{name}.txt"
    path.write_text(pins, encoding="utf-8")
    return path


def _read_note(name: str) -> dict[str, Any]:
    try:
        return json.loads((NOTES / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_note(name: str, content: Mapping[str, object]) -> None:
    fresh = NOTES / f"{name}.json.new"
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    fresh.replace(NOTES / f"{name}.json")


@contextmanager
def _alone() -> Generator[None]:
    """Hold the lock that keeps two setups of one clone apart; the kernel drops it with the process."""
    NOTES.mkdir(parents=True, exist_ok=True)
    with (NOTES / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another setup is at work in this folder; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)
