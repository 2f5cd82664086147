"""`enclave infill`: where the place is, what is sent, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.exceptions import error_for
from enclave_cli.commands.infill import parted
from enclave_cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from .conftest import Run
    from .fake_daemon import FakeDaemon

TEXT = "Once upon a time."
SOURCE = "def add(a, b):\n    return\n"


def test_the_text_between_two_others_is_asked_for(run: Run, daemon: FakeDaemon) -> None:
    done = run(
        *("infill", "tiny", "--prefix", "def add(", "--suffix", "):", "--order", "spm"),
        *("-n", "8", "-t", "0", "--stop", "\n", "--backend", "fake", "--priority", "background"),
    )
    assert (done.exit_code, done.out, done.err) == (ExitCode.OK, TEXT, "")
    assert daemon.request("connect")["priority"] == "background"
    assert daemon.request("infill") == {
        "model": "tiny",
        "prefix": "def add(",
        "suffix": "):",
        "order": "spm",
        "max_tokens": 8,
        "temperature": 0.0,
        "stop": ("\n",),
        "backend": "fake",
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [(("--prefix", "a"), ("a", "")), (("--suffix", "b"), ("", "b")), (("--prefix", ""), ("", ""))],
)
def test_one_of_the_two_texts_is_enough(
    arguments: tuple[str, ...], parts: tuple[str, str], run: Run, daemon: FakeDaemon
) -> None:
    run("infill", "tiny", *arguments)
    asked = daemon.request("infill")
    assert (asked["prefix"], asked["suffix"], asked["order"]) == (*parts, "auto")


def test_a_place_in_a_file_parts_its_text(tmp_path: Path, run: Run, daemon: FakeDaemon) -> None:
    path = tmp_path / "main.py"
    path.write_text(SOURCE)
    run("infill", "tiny", "--file", str(path), "--at", "2:5")
    asked = daemon.request("infill")
    assert (asked["prefix"], asked["suffix"]) == ("def add(a, b):\n    ", "return\n")
    assert path.read_text() == SOURCE


def test_a_file_from_a_pipe_is_taken_as_it_is(run: Run, daemon: FakeDaemon) -> None:
    run("infill", "tiny", "--file", "-", "--at", "2", stdin=SOURCE.encode())
    asked = daemon.request("infill")
    assert (asked["prefix"], asked["suffix"]) == ("def add(a, b):\n    return", "\n")


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ((1, 1), ""),
        ((1, 3), "ab"),
        ((1, None), "ab"),
        ((2, 1), "ab\r\n"),
        ((2, None), "ab\r\né模"),
        ((2, 2), "ab\r\né"),
        ((3, 1), "ab\r\né模\n"),
        ((3, None), "ab\r\né模\n"),
    ],
)
def test_lines_and_columns_count_from_one_and_a_line_ends_before_its_newline(
    place: tuple[int, int | None], prefix: str
) -> None:
    text = "ab\r\né模\n"
    assert parted(text, *place) == (prefix, text[len(prefix) :])


@given(st.text(alphabet="a\r\n"), st.integers(1, 20), st.integers(1, 20))
def test_the_two_parts_are_the_text_or_there_is_no_such_place(text: str, number: int, column: int) -> None:
    lines = text.split("\n")
    if number > len(lines) or column > len(lines[number - 1].removesuffix("\r")) + 1:
        with pytest.raises(CommandError) as error:
            parted(text, number, column)
        assert error.value.problem.exit_code == ExitCode.USAGE
        assert error.value.problem.hint
        return
    before, after = parted(text, number, column)
    assert before + after == text
    assert before.count("\n") == number - 1
    assert len(before.rpartition("\n")[2]) == column - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to be filled in"),
        (("--file", "main.py"), "no place without --at"),
        (("--at", "1:1"), "nothing to be filled in"),
        (("--file", "main.py", "--at", "4"), "the text ends in line 3, there is no line 4"),
        (("--file", "main.py", "--at", "1:16"), "line 1 has 14 characters, there is no column 16"),
        (("--file", "main.py", "--at", "0"), "is no LINE and no LINE:COLUMN"),
        (("--file", "main.py", "--at", "2:0"), "is no LINE and no LINE:COLUMN"),
        (("--file", "main.py", "--at", "2:\x1b"), "'2:\ufffd' is no LINE"),
        (("--file", "gone.py", "--at", "1"), "'gone.py', cannot be read"),
        (("--file", "bytes.py", "--at", "1"), "bytes.py is not UTF-8 text (byte 1)"),
        (("--file", "main.py", "--prefix", "a"), "stand instead of"),
        (("--prefix", "a", "--at", "1"), "stand instead of"),
        (("--prefix", "a", "--order", "pms"), "'psm'"),
        (("--prefix", "a", "--stream"), "--stream goes with --json"),
    ],
)
def test_a_wrong_place_is_a_usage_error_with_the_next_step(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    run: Run,
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").write_text(SOURCE)
    (tmp_path / "bytes.py").write_bytes(b"a\xff")
    done = run("infill", "tiny", *arguments)
    assert done.exit_code == ExitCode.USAGE
    assert said in done.err.splitlines()[0]
    assert "\nhint: " in done.err
    assert daemon.asked == []


def test_infill_prints_receipt_document_and_lines_as_run_does(run: Run, daemon: FakeDaemon) -> None:
    asked = ("infill", "tiny", "--prefix", "a")
    assert run(*asked, "--verbose").err == run("run", "tiny", "a", "--raw", "--verbose").err != ""
    assert run(*asked, "--json").json == run("run", "tiny", "a", "--json").json
    types = [line["type"] for line in run(*asked, "--json", "--stream").json_lines]
    assert types == ["chunk", "chunk", "chunk", "result"]
    daemon.fails_with = error_for("worker_died", "it died")
    assert run(*asked, "--json", "--stream").json_lines[-1]["error"]["code"] == "worker_died"
