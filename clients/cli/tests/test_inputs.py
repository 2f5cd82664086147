"""What is read from pipes and files, and what is said of it when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_cli import inputs
from enclave_cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from .conftest import Run
    from .fake_daemon import FakeDaemon

GOOD = b'[{"role": "user", "content": "Hello"}]'


def _written(folder: Path, data: bytes, name: str = "talk.json") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "talk.json is empty"),
        (b" \n", "talk.json is empty"),
        (b"Hello", "talk.json is not JSON: Expecting value (line 1, column 1)"),
        (b'[{"role": "user"},\n]', "talk.json is not JSON: "),
        (b'[{"content": "\\ud800"}]', "talk.json holds what cannot be sent: "),
        (b'[{"weight": NaN}]', "talk.json is not JSON: NaN is no number there"),
        (b'[{"weight": 99999999999999999999999}]', "talk.json holds what cannot be sent: "),
        (b'[{"content": ' + b"[" * 100 + b"]" * 100 + b"}]", "talk.json holds what cannot be sent: "),
        (b"[" * 100_000, "talk.json is nested too deeply"),
        (b"[]", "talk.json holds no message"),
        (b'{"messages": []}', "talk.json holds an object, no array"),
        (b'"Hello"', "talk.json holds a text, no array"),
        (b"null", "talk.json holds null, no array"),
        (b'[{"role": "user"}, 7]', "talk.json is a number, no object"),
        (b"[true]", "talk.json is a truth value, no object"),
        (b"\xff\xfe[]", "talk.json is not UTF-8 text (byte 0)"),
    ],
)
@pytest.mark.parametrize("command", ["run", "render"])
def test_a_file_that_is_no_conversation_is_a_usage_error_with_the_next_step(
    command: str, data: bytes, said: str, tmp_path: Path, run: Run, daemon: FakeDaemon
) -> None:
    done = run(command, "tiny", "--messages", _written(tmp_path, data))
    assert (done.exit_code, done.out) == (ExitCode.USAGE, "")
    assert said in done.err.splitlines()[0]
    assert "\nhint: " in done.err
    assert daemon.asked == []


@pytest.mark.parametrize(("name", "said"), [("gone.json", "No such file"), (".", "Is a directory"), ("", "directory")])
def test_a_file_that_cannot_be_read_is_a_usage_error(
    name: str, said: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("render", "tiny", "--messages", name, "--json")
    assert done.exit_code == ExitCode.USAGE
    assert done.json["error"]["code"] == "usage"
    assert said in done.json["error"]["message"]
    assert done.json["error"]["hint"]


def test_a_conversation_may_come_from_a_pipe_and_begin_with_a_mark(run: Run, daemon: FakeDaemon) -> None:
    assert run("render", "tiny", "--messages", "-", stdin=b"\xef\xbb\xbf" + GOOD).exit_code == ExitCode.OK
    assert daemon.request("render")["messages"] == [{"role": "user", "content": "Hello"}]


def test_where_no_pipe_is_a_conversation_from_it_is_a_usage_error(run: Run) -> None:
    done = run("render", "tiny", "--messages", "-")
    assert done.exit_code == ExitCode.USAGE
    assert "standard input is empty" in done.err
    assert 'hint: a conversation is a JSON array of messages, such as [{"role"' in done.err


@pytest.mark.parametrize("option", ["--tools", "--schema"])
@pytest.mark.parametrize("data", [b"7", b"{", b"", b"[[]]"])
def test_tools_and_schemas_that_are_none_are_usage_errors(
    option: str, data: bytes, tmp_path: Path, run: Run, daemon: FakeDaemon
) -> None:
    talk, wrong = _written(tmp_path, GOOD), _written(tmp_path, data, "wrong.json")
    done = run("run", "tiny", "--messages", talk, option, wrong)
    assert done.exit_code == ExitCode.USAGE
    assert "wrong.json" in done.err
    assert "\nhint: " in done.err
    assert daemon.asked == []


def test_no_more_of_a_file_is_read_than_a_request_can_hold(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    done = run("render", "tiny", "--messages", str(path), "--json")
    assert done.exit_code == ExitCode.FAILED
    assert done.json["error"]["code"] == "too_large"
    assert done.json["error"]["numbers"] == {"bytes_max": 33_554_432}


@pytest.mark.parametrize(
    ("piped", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"\n", [""]),
        ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
    ],
)
def test_a_line_is_a_text_also_an_empty_one(piped: bytes, texts: list[str], run: Run, daemon: FakeDaemon) -> None:
    run("embed", "tiny", stdin=piped)
    assert daemon.request("embed")["texts"] == texts


def test_a_pipe_is_left_alone_where_the_command_line_brings_the_texts(run: Run, daemon: FakeDaemon) -> None:
    run("embed", "tiny", "a", stdin=b"b\n")
    assert daemon.request("embed")["texts"] == ["a"]


def test_an_empty_pipe_is_no_text(run: Run, daemon: FakeDaemon) -> None:
    for arguments in (["embed", "tiny"], ["rerank", "tiny", "query"]):
        assert run(*arguments, stdin=b"").exit_code == ExitCode.USAGE
    assert daemon.asked == []


def test_a_path_is_shown_on_one_safe_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error:
        inputs.read_file(str(tmp_path / "a\x1b[31m\nb"), "the text")
    assert "a\ufffd[31m b" in error.value.problem.message
