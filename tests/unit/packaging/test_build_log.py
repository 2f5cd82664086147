"""Running a long build."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from enclave_setup.build_log import ninja_progress, progress_text, run, tail


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("DEBUG [12/193] /usr/bin/c++ -O3 -c a.cpp", (12, 193)),
        ("[1/2] Linking", (1, 2)),
        ("DEBUG  5950 |   (__mmask8) -1);", None),
        ("note: see a[1/2] for more", None),
        ("x" * 80 + " [3/4] ", None),
    ],
)
def test_ninjas_steps_are_told_from_other_lines(line: str, step: tuple[int, int] | None) -> None:
    assert ninja_progress(line) == step


def test_progress_tells_the_time_and_the_step() -> None:
    assert progress_text("building", 75.4, (12, 193)) == "building · 1:15 · step 12 of 193"
    assert progress_text("building", 5.0, None) == "building · 0:05"


def test_all_output_goes_to_the_log_and_the_status_comes_back(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    code = "import sys; print('one', flush=True); print('[2/9] two', file=sys.stderr); sys.exit(7)"
    assert run([sys.executable, "-c", code], os.environ, log, "building") == 7
    assert log.read_text(encoding="utf-8") == "one\n[2/9] two\n"


def test_the_tail_of_a_log_is_its_last_lines_cut_to_a_width(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("a\nb\n" + "c" * 1000 + "\n", encoding="utf-8")
    assert tail(log, lines=2) == "b\n" + "c" * 400
    assert tail(tmp_path / "absent.log") == ""
