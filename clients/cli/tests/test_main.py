"""The edge: exit codes, errors, help, and what is imported."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from enclave.connecting import NOT_STARTED_HINT
from enclave.exceptions import error_for
from enclave.protocol.methods import METHODS
from enclave_cli import errors, lazy
from enclave_cli.errors import ExitCode

if TYPE_CHECKING:
    from .conftest import Run, Script
    from .fake_daemon import FakeDaemon

ROOT = Path(__file__).parents[3]
COMMANDS = tuple(lazy.COMMANDS)


def _command(name: str) -> click.Command:
    command = importlib.import_module(lazy.module_name(name)).command
    assert isinstance(command, click.Command)
    return command


@pytest.mark.parametrize(
    "arguments",
    ["[]", "['--help']", "['nonsense']", *(f"[{name!r}, '--help']" for name in COMMANDS)],
)
def test_help_imports_neither_the_client_nor_its_libraries(arguments: str) -> None:
    code = f"""if True:
        import sys
        from enclave_cli.main import connect, execute
        execute({arguments}, connect)
        heavy = {{"zmq", "msgpack", "rich", "asyncio", "enclave"}} & set(sys.modules)
        sys.exit(f"imported: {{heavy}}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_commands_module_is_imported_only_when_it_is_called() -> None:
    code = """if True:
        import sys
        from enclave_cli.main import connect, execute
        execute(["--help"], connect)
        sys.exit(any(name.startswith("enclave_cli.commands") for name in sys.modules))
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    assert (_command(name).help or "").splitlines()[0] == lazy.COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_examples_and_has_json(name: str, run: Run) -> None:
    done = run(name, "--help")
    assert done.exit_code == ExitCode.OK
    assert f"enclave {name}" in done.out.partition("Examples:")[2]
    assert "--json" in done.out


def test_the_help_lists_commands_and_exit_codes(run: Run) -> None:
    done = run("--help")
    assert done.exit_code == ExitCode.OK
    assert done.err == ""
    columns = max(len(name) for name in lazy.COMMANDS)
    for name, sentence in lazy.COMMANDS.items():
        assert f"  {name:<{columns}}  {sentence}" in done.out
    for code, meaning in errors.MEANINGS.items():
        assert f"{code.value:<5}{meaning}" in done.out


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    assert run() == run("--help")


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.startswith("enclave 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["lst"],
        ["list", "extra"],
        ["run", "--temperature", "-1"],
        ["run", "--nonsense"],
        ["show"],
        ["why", "--limit", "0"],
        ["embed", "tiny"],
        ["embed", "", "text"],
        ["rerank", "tiny"],
        ["rerank", "tiny", "query"],
        ["rerank", "tiny", "query", "a", "--top", "0"],
        ["tokenize", "tiny"],
        ["tokenize", "tiny", "two", "words"],
        ["tokenize", "tiny", "--ids", "--no-special", "1"],
        ["tokenize", "tiny", "--ids", "--parse-special", "1"],
        ["render", "tiny"],
        ["pull"],
        ["pull", " "],
        ["pull", "folder:a", "--stream"],
        ["downloads", "cancle", "d3"],
        ["downloads", "cancel"],
        ["events", "weather"],
        ["load", "tiny", "--kv-type", "q4"],
        ["run", "tiny", "Once", "--priority", "high"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], run: Run, daemon: FakeDaemon) -> None:
    done = run(*arguments)
    assert done.exit_code == ExitCode.USAGE
    assert done.out == ""
    assert done.err.startswith("enclave: ")
    assert "\nhint: " in done.err
    assert daemon.asked == []


def test_an_unknown_command_brings_the_nearest_known_one(run: Run) -> None:
    assert "did you mean 'unload'?" in run("unlod").err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["tiny", "hi there"], "`enclave run tiny 'hi there'`"),
        (["help"], "`enclave --help`"),
        (["help", "run"], "`enclave run --help`"),
    ],
)
def test_what_is_no_command_brings_what_was_probably_meant(arguments: list[str], meant: str, run: Run) -> None:
    done = run(*arguments)
    assert done.exit_code == ExitCode.USAGE
    assert f"did you mean {meant}?" in done.err


@pytest.mark.parametrize("arguments", [["tiny"], ["daemon", "end"]])
def test_a_word_that_is_no_command_is_taken_for_no_model_without_a_sign_of_it(arguments: list[str], run: Run) -> None:
    said = run(*arguments).err
    assert "did you mean" not in said
    assert "`enclave --help`" in said


def test_what_is_built_is_told_in_the_help(run: Run) -> None:
    methods = {"pull": "models.pull", "downloads": "downloads.list"}
    missing = {
        name for name in COMMANDS if (method := METHODS.get(methods.get(name, name))) is not None and not method.built
    }
    assert missing == lazy.NOT_BUILT
    text = " ".join(run("--help").out.split())
    assert {name for name in COMMANDS if f"{lazy.COMMANDS[name]} (not built yet)" in text} == missing
    page = " ".join((ROOT / "docs/cli.md").read_text().split())
    told = page.partition("Not built yet are ")[2].partition(". ")[0]
    assert {name for name in COMMANDS if f"`{name}`" in told} == missing


def test_what_is_no_number_is_said_in_plain_words(run: Run) -> None:
    assert "'abc' is not a whole number." in run("run", "tiny", "--max-tokens", "abc").err
    assert "'abc' is not a number." in run("run", "tiny", "--top-p", "abc").err


def test_a_daemon_that_does_not_answer_is_not_said_to_need_a_start(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for(
        "daemon_unavailable", "the daemon (pid 7) does not answer", hint="End it with `kill 7`."
    )
    assert "hint: End it with `kill 7`." in run("ps", "--no-start").err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_after_the_end_of_a_command_changes_nothing(script: Script) -> None:
    late = "import atexit, os, signal, sys; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    own, *arguments = script.command("list")[1:]
    code = f"{late}; import runpy; sys.argv[1:] = {arguments!r}; runpy.run_path({own!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=script.environment({}), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "tiny" in done.stdout


def test_an_argument_that_is_no_text_is_named(run: Run, daemon: FakeDaemon) -> None:
    done = run("run", "tiny", "caf\udcff")
    assert done.exit_code == ExitCode.USAGE
    assert "argument 3, 'caf\ufffd', is not valid UTF-8" in done.err
    assert daemon.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "--json"],
        ["run", "tiny", "--bogus", "--json"],
        ["bogus", "--json"],
        ["--bogus", "--json"],
        ["run", "caf\udcff", "--json"],
    ],
)
def test_usage_errors_obey_json_too(arguments: list[str], run: Run) -> None:
    done = run(*arguments)
    assert done.exit_code == ExitCode.USAGE
    assert done.json["error"]["code"] == "usage"
    assert done.err == ""


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("model_not_found", ExitCode.FAILED),
        ("busy", ExitCode.FAILED),
        ("internal", ExitCode.FAILED),
        ("daemon_unavailable", ExitCode.UNREACHABLE),
        ("connection_lost", ExitCode.UNREACHABLE),
        ("bad_config", ExitCode.UNREACHABLE),
    ],
)
def test_an_error_of_the_daemon_decides_the_exit_code(
    code: str, exit_code: ExitCode, run: Run, daemon: FakeDaemon
) -> None:
    daemon.fails_with = error_for(code, "it went wrong", hint="do better")
    done = run("ps")
    assert done.exit_code == exit_code
    assert done.out == ""
    assert done.err == "enclave: it went wrong\nhint: do better\n"


def test_an_error_as_json_has_every_field(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for(
        "busy", "the queue is full", hint="wait", retry_after=2.5, numbers={"queued": 64}, detail="long words"
    )
    done = run("list", "--json")
    assert done.exit_code == ExitCode.FAILED
    assert done.err == ""
    assert done.json == {
        "error": {
            "code": "busy",
            "message": "the queue is full",
            "hint": "wait",
            "retryable": True,
            "retry_after": 2.5,
            "numbers": {"queued": 64},
            "detail": "long words",
        }
    }


def test_the_end_of_a_long_detail_is_shown(run: Run, daemon: FakeDaemon) -> None:
    words = "\n".join(f"line {number}" for number in range(100))
    daemon.fails_with = error_for("load_failed", "no", detail=words + "\x1b[31m")
    shown = run("load", "tiny").err
    assert "line 99\ufffd[31m" in shown
    assert "line 1\n" not in shown
    assert len(shown.splitlines()) < 20


def test_what_message_and_hint_say_is_not_repeated(run: Run, daemon: FakeDaemon) -> None:
    said = "line 3: there is no setting 'chaos'"
    daemon.fails_with = error_for("bad_config", said, hint="see docs", detail=f"ERROR {said}\nhint: see docs\nmore\n")
    assert run("ps").err == f"enclave: {said}\n  more\nhint: see docs\n"
    daemon.fails_with = error_for("bad_config", said, hint=said)
    assert run("ps").err == f"enclave: {said}\n"


def test_an_unforeseen_exception_is_a_sentence_and_no_traceback(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = RuntimeError("boom")
    done = run("list")
    assert done.exit_code == ExitCode.FAILED
    assert "unexpected RuntimeError: boom" in done.err
    assert "Traceback" not in done.err
    assert "ENCLAVE_DEBUG" in done.err


def test_the_traceback_is_shown_when_asked_for(run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCLAVE_DEBUG", "1")
    daemon.fails_with = RuntimeError("boom")
    assert "Traceback" in run("list").err


def test_a_process_of_its_own_shows_no_traceback_either(script: Script) -> None:
    done = script.run("list", fails_with="unforeseen")
    assert done.exit_code == ExitCode.FAILED
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["--no-start", "ps"], ["ps", "--no-start"]])
def test_no_start_is_taken_before_and_after_the_command(arguments: list[str], run: Run, daemon: FakeDaemon) -> None:
    assert run(*arguments).exit_code == ExitCode.OK
    assert daemon.request("connect")["start"] is False


def test_without_a_start_the_hint_says_so(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for("daemon_unavailable", "no daemon is running", hint=NOT_STARTED_HINT)
    done = run("ps", "--no-start")
    assert done.exit_code == ExitCode.UNREACHABLE
    assert "hint: leave out --no-start" in done.err


def test_a_daemon_is_started_by_default_and_left_at_the_end(run: Run, daemon: FakeDaemon) -> None:
    run("ps")
    assert daemon.request("connect")["start"] is True
    assert daemon.asked[-1] == ("close", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_help_for_a_full_disk_is_one_line_too(script: Script) -> None:
    environment = {name: value for name, value in script.environment({}).items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            script.command("--help"), env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == b"enclave: standard output could not be written: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_during_the_imports_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nassert False\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from enclave_cli.entry import main; sys.exit(main())", "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, b"", b"")


def test_every_command_and_exit_code_has_its_place_in_the_docs() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    headings = [line.removeprefix("## ").strip("`") for line in text.splitlines() if line.startswith("## ")]
    assert [heading.removeprefix("enclave ") for heading in headings if heading.startswith("enclave ")] == list(
        COMMANDS
    )
    for code, meaning in errors.MEANINGS.items():
        assert f"| {code.value} | {meaning}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_in_its_part_of_the_docs(name: str) -> None:
    text = (ROOT / "docs/cli.md").read_text()
    part = text.partition(f"\n## `enclave {name}`\n")[2].partition("\n## ")[0]
    shown = [parameter for parameter in _command(name).params if not getattr(parameter, "hidden", False)]
    missing = [
        option
        for parameter in shown
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if f"`{option}" not in part
    ]
    assert not missing


ONE_DOCUMENT = (
    ("list",),
    ("ps",),
    ("plugins",),
    ("folder",),
    ("folder", "list"),
    ("folder", "add", "."),
    ("folder", "remove", "."),
    ("why",),
    ("show", "tiny"),
    ("load", "tiny"),
    ("unload", "tiny"),
    ("embed", "tiny", "a", "b"),
    ("rerank", "tiny", "q", "a", "b"),
    ("infill", "tiny", "--prefix", "a"),
    ("tokenize", "tiny", "a"),
    ("tokenize", "tiny", "--ids", "1"),
    ("pull", "folder:a"),
    ("downloads",),
    ("downloads", "cancel", "d3"),
    ("events", "--snapshot", "instances", "downloads"),
)


@pytest.mark.parametrize("arguments", ONE_DOCUMENT, ids=" ".join)
def test_json_is_written_on_one_line(arguments: tuple[str, ...], run: Run) -> None:
    done = run(*arguments, "--json")
    assert done.exit_code == ExitCode.OK
    assert done.err == ""
    assert done.out.count("\n") == 1
    json.loads(done.out)


@pytest.mark.parametrize("arguments", ONE_DOCUMENT, ids=" ".join)
def test_what_a_daemon_cannot_do_is_a_line_and_a_hint(arguments: tuple[str, ...], run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for("unsupported", "not built yet", hint="leave it out")
    daemon.texts, daemon.news = (), ()
    done = run(*arguments)
    assert (done.exit_code, done.out) == (ExitCode.FAILED, "")
    assert done.err == "enclave: not built yet\nhint: leave it out\n"
    assert run(*arguments, "--json").json["error"]["code"] == "unsupported"
