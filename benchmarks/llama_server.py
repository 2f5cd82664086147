"""llama-server of the very llama.cpp that llama-cpp-python is built from, to measure against.

Set LLAMA_SERVER to one that was built already; else it is built once into the benchmarks' cache, in about ten minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from enclave.paths import places

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_CURL=OFF",
)


def llama_server() -> Path:
    """The program's path. Raises RuntimeError, with the next step, when it cannot be had."""
    named = os.environ.get("LLAMA_SERVER")
    if named:
        if not Path(named).is_file():
            raise RuntimeError(f"LLAMA_SERVER names {named}, which is no file")
        return Path(named)
    release = version("llama-cpp-python")
    folder = places(os.environ).cache / "benchmarks" / f"llama-server-{release}"
    program = folder / "build" / "bin" / "llama-server"
    if not program.is_file():
        _build(folder, release)
    return program


def _build(folder: Path, release: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(f"building llama-server {release} in {folder}: about 10 min, once", file=sys.stderr)
    source = f"llama-cpp-python=={release}"
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    _run([*fetch, "--dest", str(folder), source], folder / "fetch.log")
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (vendored,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    build = folder / "build"
    _run(["cmake", "-S", str(vendored), "-B", str(build), *OPTIONS], folder / "configure.log")
    _run(["cmake", "--build", str(build), "--target", "llama-server", "--parallel"], folder / "build.log")


def _run(command: list[str], log: Path) -> None:
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{command[0]} failed with {code}; its log is {log}. Or set LLAMA_SERVER to a built one.")
