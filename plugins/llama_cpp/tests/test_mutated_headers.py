"""Mutated headers by the thousand: each ends in a header or a reason, soon and with little memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from plugins.llama_cpp.tests.mutated_headers import SECONDS_MAX


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 5_000), *(pytest.param(seed, 50_000, marks=pytest.mark.long) for seed in range(2, 6))],
)
def test_each_ends_in_a_header_or_a_reason(seed: int, count: int) -> None:
    command = [sys.executable, "-m", "plugins.llama_cpp.tests.mutated_headers", str(seed), str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads(ended.stdout)
    assert told["headers"] + told["reasons"] == count
    assert told["headers"] > count // 50, "the mutations leave too little whole to reach what comes late in a header"
    assert told["different"] >= 5, told
    assert told["slowest_seconds"] < SECONDS_MAX
