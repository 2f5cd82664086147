"""Which interpreter `make setup` takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "packaging/setup/find_python.sh"
SHELL = shutil.which("sh")

pytestmark = pytest.mark.skipif(SHELL is None, reason="needs a POSIX shell")


def _interpreter(folder: Path, name: str, fits: bool) -> Path:
    """A stand-in that says whether its version fits, which is all that the script asks of it."""
    path = folder / name
    path.write_text(f"#!{SHELL}\n[ $# -gt 1 ] && exit {0 if fits else 1}\necho 'Python 3.9.1'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _find(folder: Path, wanted: str = "") -> subprocess.CompletedProcess[str]:
    assert SHELL is not None
    return subprocess.run(
        [SHELL, SCRIPT, wanted], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


def test_python3_comes_first_when_it_fits(tmp_path: Path) -> None:
    python3 = _interpreter(tmp_path, "python3", fits=True)
    _interpreter(tmp_path, "python3.13", fits=True)
    assert _find(tmp_path).stdout.strip() == str(python3)


def test_the_newest_that_fits_stands_in_for_an_unfit_python3(tmp_path: Path) -> None:
    _interpreter(tmp_path, "python3", fits=False)
    _interpreter(tmp_path, "python3.11", fits=True)
    newest = _interpreter(tmp_path, "python3.12", fits=True)
    assert _find(tmp_path).stdout.strip() == str(newest)


def test_without_any_the_next_step_is_named(tmp_path: Path) -> None:
    _interpreter(tmp_path, "python3", fits=False)
    done = _find(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Python 3.9.1" in done.stderr
    assert "make setup PYTHON=" in done.stderr


def test_a_launchers_complaint_is_not_quoted(tmp_path: Path) -> None:
    shim = tmp_path / "python3.9"
    shim.write_text(f"#!{SHELL}\necho 'shim: not installed\nsome\nversions are' >&2\nexit 127\n", encoding="utf-8")
    shim.chmod(0o755)
    done = _find(tmp_path, "python3.9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("setup: PYTHON=python3.9 does not start")
    assert len(done.stderr.splitlines()) == 2


def test_the_one_asked_for_is_taken_or_refused(tmp_path: Path) -> None:
    _interpreter(tmp_path, "python3", fits=True)
    mine = _interpreter(tmp_path, "mine", fits=True)
    old = _interpreter(tmp_path, "old", fits=False)
    assert _find(tmp_path, str(mine)).stdout.strip() == str(mine)
    for refused in (str(old), str(tmp_path / "absent")):
        done = _find(tmp_path, refused)
        assert done.returncode == 1
        assert "PYTHON=" in done.stderr
