"""`enclave pull` and `enclave downloads`: how a transfer is told of, and how it is ended."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol.messages import Progress, Stage
from enclave_cli.errors import ExitCode
from enclave_cli.transfers import Transfer

if TYPE_CHECKING:
    from .conftest import Run, Script
    from .fake_daemon import FakeDaemon

MIB = 2**20
GIB = 2**30
HALF = Progress(id=1, stage=Stage.TRANSFER, done=512, total=1024)

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _coming(done: int | None, total: int | None = 4 * GIB) -> Progress:
    return Progress(id=1, stage=Stage.TRANSFER, done=done, total=total)


def test_a_transfer_tells_how_much_how_fast_and_how_long() -> None:
    clock = Clock()
    transfer = Transfer("hf:a/b", clock)
    assert transfer.sentence(_coming(GIB)) == "fetching hf:a/b: 1.0 GiB of 4.0 GiB"
    clock.now += 2
    assert (
        transfer.sentence(_coming(GIB + 24 * MIB)) == "fetching hf:a/b: 1.0 GiB of 4.0 GiB, 12.0 MiB/s, 4 min 14 s left"
    )
    clock.now += 2
    assert transfer.sentence(_coming(4 * GIB)) == "fetching hf:a/b: 4.0 GiB of 4.0 GiB, 768.0 MiB/s"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    transfer = Transfer("m", clock)
    done = 0
    for bytes_a_second in (*[100 * MIB] * 20, *[MIB] * 12):
        transfer.sentence(_coming(done))
        clock.now += 1
        done += bytes_a_second
    assert ", 1.0 MiB/s, " in transfer.sentence(_coming(done))


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (_coming(None), "fetching m"),
        (_coming(512, None), "fetching m: 512 B"),
        (Progress(id=1, stage=Stage.QUEUED, ahead=2), "waiting: 2 requests ahead"),
    ],
)
def test_what_is_not_known_of_a_transfer_is_left_out(progress: Progress, said: str) -> None:
    assert Transfer("m").sentence(progress) == said


def test_a_transfer_that_begins_anew_has_no_rate_at_first() -> None:
    clock = Clock()
    transfer = Transfer("m", clock)
    for done in (GIB, 2 * GIB):
        transfer.sentence(_coming(done))
        clock.now += 1
    assert transfer.sentence(_coming(0)) == "fetching m: 0 B of 4.0 GiB"


@given(st.lists(st.tuples(st.integers(0, 2**53), st.floats(0, 1e6)), max_size=30))
def test_whatever_comes_a_transfer_has_a_sentence(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    transfer = Transfer("m", clock)
    for done, seconds in steps:
        assert transfer.sentence(_coming(done)).startswith("fetching m: ")
        clock.now += seconds


def test_pull_says_what_was_installed_and_is_quiet_in_a_pipe(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (HALF,)
    done = run("pull", "hf:owner/model")
    assert daemon.request("pull") == {"reference": "hf:owner/model"}
    assert (done.exit_code, done.err) == (ExitCode.OK, "")
    assert done.out.splitlines() == ["name  tiny", "size  1.1 MiB", "path  /models/tiny.gguf"]


def test_pull_as_json_is_one_document_or_lines(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (HALF,)
    result = {"name": "tiny", "size": 1_185_376, "path": "/models/tiny.gguf"}
    assert run("pull", "hf:owner/model", "--json").json == result
    assert run("pull", "hf:owner/model", "--json", "--stream").json_lines == [
        {"type": "progress", "stage": "transfer", "done": 512, "total": 1024},
        {"type": "result", **result},
    ]


@posix_only
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_ends_a_pull(options: tuple[str, ...], script: Script) -> None:
    with script.running("pull", "hf:owner/model", *options, hangs=True) as (process, reports):
        assert reports.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert reports.read() == "ended\n"
    assert (process.returncode, err) == (ExitCode.INTERRUPTED, b"")
    assert [json.loads(line)["error"]["code"] for line in out.splitlines()] == ["cancelled"] * len(options)


def test_downloads_shows_whatever_the_daemon_tells(run: Run, daemon: FakeDaemon) -> None:
    daemon.downloads_known = (
        {"id": "d3", "reference": "hf:a/b", "done_bytes": 512, "left_seconds": 75.0},
        {"id": "d4", "reference": "hf:c\x1b/d", "problem": "no such model", "files": ["a", "b"], "done_bytes": None},
    )
    heading, first, second = run("downloads").out.splitlines()
    assert heading.split("  ")[0] == "ID"
    assert " ".join(heading.split()) == "ID REFERENCE DONE BYTES LEFT SECONDS PROBLEM FILES"
    assert " ".join(first.split()) == "d3 hf:a/b 512 B 1 min 15 s - -"
    assert " ".join(second.split()) == "d4 hf:c\ufffd/d - - no such model a, b"
    assert run("downloads", "--json").json["downloads"][0]["done_bytes"] == 512


def test_downloads_without_any_says_how_to_fetch_one(run: Run) -> None:
    assert "enclave pull" in run("downloads").out
    assert run("downloads", "--json").json == {"downloads": []}


@pytest.mark.parametrize(
    "arguments", [("downloads", "cancel", "d3", "--json"), ("downloads", "--json", "cancel", "d3")]
)
def test_a_download_is_cancelled_by_its_id(arguments: tuple[str, ...], run: Run, daemon: FakeDaemon) -> None:
    assert run(*arguments).json == {"cancelled": "d3"}
    assert daemon.request("cancel_download") == {"download": "d3"}
    assert "downloads" not in [name for name, _ in daemon.asked]
    assert run("downloads", "cancel", "d3").out == "d3 was cancelled\n"
