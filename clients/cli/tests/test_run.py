"""`enclave run`: what is sent, what comes out where, and how it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enclave.exceptions import error_for
from enclave.protocol.messages import Progress, Stage
from enclave_cli.errors import ExitCode
from enclave_cli.receipts import receipt_text

if TYPE_CHECKING:
    from .conftest import Run, Script
    from .fake_daemon import FakeDaemon

TEXT = "Once upon a time."
LOADING = Progress(id=1, stage=Stage.LOADING, fraction=0.4)

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and terminals as POSIX has them")


def test_standard_output_gets_exactly_the_answer(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (LOADING,)
    done = run("run", "tiny", "Once")
    assert done == type(done)(ExitCode.OK, TEXT, "")


def test_a_run_asks_for_what_the_command_line_says(run: Run, daemon: FakeDaemon) -> None:
    run(
        *("run", "tiny", "Once", "--raw", "--temperature", "0", "--max-tokens", "64", "--seed", "1"),
        *("--top-k", "5", "--top-p", "0.5", "--min-p", "0.1", "--stop", "a", "--stop", "b"),
        *("--context", "512", "--backend", "fake", "--priority", "background"),
    )
    assert daemon.request("connect")["priority"] == "background"
    assert daemon.request("generate") == {
        "model": "tiny",
        "prompt": "Once",
        "temperature": 0.0,
        "max_tokens": 64,
        "seed": 1,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "stop": ("a", "b"),
        "context": 512,
        "backend": "fake",
    }


def test_what_was_not_said_is_left_to_the_daemon(run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", "Once")
    assert daemon.request("generate") == {"model": "tiny", "prompt": "Once"}
    assert daemon.request("connect")["priority"] == "normal"


@pytest.mark.parametrize(("arguments", "what"), [(("", "hi"), "MODEL is empty"), (("tiny", ""), "prompt is empty")])
def test_an_empty_model_or_prompt_is_a_usage_error(
    arguments: tuple[str, ...], what: str, run: Run, daemon: FakeDaemon
) -> None:
    done = run("run", *arguments)
    assert done.exit_code == ExitCode.USAGE
    assert what in done.err
    assert daemon.asked == []


def test_piped_text_stands_for_an_empty_prompt(run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", "", stdin=b"Once")
    assert daemon.request("generate")["prompt"] == "Once"


@pytest.mark.parametrize("option", ["--max-tokens", "--top-k", "--context"])
def test_a_number_beyond_what_backends_count_with_is_a_usage_error(option: str, run: Run, daemon: FakeDaemon) -> None:
    done = run("run", "tiny", "Once", option, "99999999999999999999")
    assert done.exit_code == ExitCode.USAGE
    assert "2147483647" in done.err
    assert daemon.asked == []
    run("run", "tiny", "Once", option, str(2**31 - 1))
    assert (2**31 - 1) in daemon.request("generate").values()


def test_a_model_without_a_prompt_is_shown_where_the_prompt_goes(run: Run) -> None:
    assert 'hint: enclave run tiny "PROMPT"\n' in run("run", "tiny").err


@pytest.mark.skipif(shutil.which("yes") is None, reason="needs the program `yes`")
def test_no_more_is_read_than_a_request_can_hold(script: Script) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout is not None
        with script.running("run", "tiny", stdin=endless.stdout.fileno()) as (process, _):
            endless.stdout.close()
            out, err = process.communicate()
    assert (process.returncode, out) == (ExitCode.FAILED, b"")
    assert b"more than 33,554,432 bytes (32.0 MiB)" in err


def test_a_prompt_may_begin_with_a_dash(run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", "--", "--raw")
    assert daemon.request("generate")["prompt"] == "--raw"


def test_the_prompt_comes_from_a_pipe(run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", stdin="Es war einmal – é\n".encode())
    assert daemon.request("generate")["prompt"] == "Es war einmal – é"


def test_prompt_and_piped_text_are_both_sent(run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", "Explain:", stdin=b"x = 1\n")
    assert daemon.request("generate")["prompt"] == "Explain:\n\nx = 1"


def test_without_a_model_the_default_one_answers(run: Run, daemon: FakeDaemon) -> None:
    run("run", stdin=b"Once")
    assert daemon.request("generate")["model"] == "tiny"


def test_without_a_model_and_without_a_default_one_there_is_an_error(run: Run, daemon: FakeDaemon) -> None:
    daemon.models_known = ()
    done = run("run", stdin=b"Once")
    assert done.exit_code == ExitCode.FAILED
    assert "no default model" in done.err


def test_a_path_is_made_absolute(run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("run", "models/a.gguf", "Once")
    assert daemon.request("generate")["model"] == str(tmp_path / "models/a.gguf")


def test_no_prompt_at_all_is_a_usage_error_that_explains_the_one_argument(run: Run, daemon: FakeDaemon) -> None:
    done = run("run", "Once upon")
    assert done.exit_code == ExitCode.USAGE
    assert 'a single argument is the MODEL: enclave run MODEL "Once upon"' in done.err
    assert daemon.asked == []


def test_a_lone_argument_that_is_no_model_is_perhaps_a_prompt(run: Run, daemon: FakeDaemon) -> None:
    daemon.texts = ()
    daemon.fails_with = error_for("model_not_found", "there is no model 'Once upon'", hint="look")
    assert "hint: a single argument is the MODEL" in run("run", "Once upon", stdin=b"x").err
    assert "hint: look (a single argument" in run("run", "tin", stdin=b"x").err
    assert "single argument" not in run("run", "tin", "Once upon").err


def test_bytes_that_are_no_text_are_refused(run: Run, daemon: FakeDaemon) -> None:
    done = run("run", "tiny", stdin=b"ab\xff")
    assert done.exit_code == ExitCode.USAGE
    assert "not UTF-8 text (byte 2)" in done.err
    assert daemon.asked == []


def test_an_error_in_the_middle_keeps_what_came(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for("worker_died", "it died")
    done = run("run", "tiny", "Once")
    assert (done.exit_code, done.out) == (ExitCode.FAILED, TEXT)
    assert done.err.startswith("enclave: it died\n")


def test_json_is_one_document_at_the_end(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (LOADING,)
    done = run("run", "tiny", "Once", "--json")
    assert done.err == ""
    assert done.out.count("\n") == 1
    assert done.json == {
        "text": TEXT,
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 5,
            "cached_tokens": 3,
            "completion_tokens": 42,
            "uncached_reason": None,
            "left_out_tokens": 0,
            "shifted_tokens": 0,
        },
        "timings": {
            "tokenize_seconds": None,
            "prompt_seconds": 0.01,
            "first_token_seconds": 0.02,
            "decoding_seconds": 1.0,
            "total_seconds": None,
        },
        "receipt": {
            "model": "tiny",
            "model_hash": "sha256:c0ffee",
            "backend": "fake",
            "device": "cpu",
            "instance": "i1",
            "template": "the model's own",
            "prompt_tokens": 5,
            "cached_tokens": 3,
            "completion_tokens": 42,
            "uncached_reason": "the beginning differs",
            "left_out_tokens": None,
            "shifted_tokens": None,
            "context_full": None,
            "seed": None,
            "queued_seconds": 0.002,
            "loading_seconds": 0.5,
            "prompt_seconds": 0.01,
            "decoding_seconds": 1.0,
            "preempted": 1,
            "charged_seconds": 1.25,
            "context": 2048,
        },
    }


def test_json_of_a_failed_run_is_the_error_alone(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for("worker_died", "it died")
    done = run("run", "tiny", "Once", "--json")
    assert done.exit_code == ExitCode.FAILED
    assert done.json["error"]["code"] == "worker_died"


def test_json_lines_tell_progress_chunks_and_result(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (LOADING,)
    lines = run("run", "tiny", "Once", "--json", "--stream").json_lines
    assert lines[0] == {"type": "progress", "stage": "loading", "fraction": 0.4}
    assert lines[1] == {"type": "chunk", "text": "Once", "tokens": [1, 2]}
    assert [line["type"] for line in lines] == ["progress", "chunk", "chunk", "chunk", "result"]
    assert set(lines[-1]) == {"type", "finish_reason", "usage", "timings", "receipt"}


def test_an_error_among_json_lines_is_a_line(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails_with = error_for("worker_died", "it died")
    last = run("run", "tiny", "Once", "--json", "--stream").json_lines[-1]
    assert last["type"] == "error"
    assert last["error"]["code"] == "worker_died"


def test_stream_without_json_is_a_usage_error(run: Run) -> None:
    assert run("run", "tiny", "Once", "--stream").exit_code == ExitCode.USAGE


def test_verbose_prints_the_receipt_on_standard_error(run: Run) -> None:
    done = run("run", "tiny", "Once", "--verbose", "--raw")
    assert done.out == TEXT
    assert done.err.splitlines() == [
        "model        tiny",
        "file         sha256:c0ffee",
        "backend      fake",
        "device       cpu",
        "instance     i1",
        "context      2,048 tokens",
        "template     the model's own",
        "queued       2 ms",
        "loading      500 ms",
        "prompt       5 tokens, 3 of them from the cache, 10 ms, 200.0 tokens/s",
        "not cached   the beginning differs",
        "first token  20 ms",
        "answer       42 tokens, 1.0 s, 42.0 tokens/s",
        "preempted    1 time",
        "charged      1.2 s",
        "finish       stop",
    ]


def test_a_receipt_without_measurements_says_less(run: Run, daemon: FakeDaemon) -> None:
    from enclave.protocol.bodies import Timings, Usage

    class Answer:
        finish_reason = "length"
        usage = Usage()
        timings = Timings()
        receipt = None

    assert receipt_text(Answer(), {}).splitlines() == [
        "prompt  0 tokens",
        "answer  0 tokens",
        "finish  length",
    ]


@posix_only
def test_ctrl_c_cancels_the_request_and_leaves_quietly(script: Script) -> None:
    with script.running("run", "tiny", "Once", hangs=True) as (process, reports):
        assert reports.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert reports.read() == "cancelled\n"
        assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, TEXT.encode(), b"")


@posix_only
def test_ctrl_c_with_json_is_a_document_too(script: Script) -> None:
    with script.running("run", "tiny", "Once", "--json", hangs=True) as (process, reports):
        assert reports.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert (process.returncode, err) == (ExitCode.INTERRUPTED, b"")
        assert json.loads(out)["error"]["code"] == "cancelled"


@posix_only
def test_a_reader_that_has_enough_is_no_error(script: Script) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with script.running("run", "tiny", "Once", stdout=writing) as (process, reports):
        os.close(writing)
        _, err = process.communicate()
        assert reports.read() == "cancelled\n"
        assert (process.returncode, err) == (ExitCode.OK, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_no_defect_of_ours(script: Script) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        script.running("run", "tiny", "Once", stdout=full.fileno()) as (
            process,
            reports,
        ),
    ):
        _, err = process.communicate()
        assert reports.read() == "cancelled\n"
        assert process.returncode == ExitCode.FAILED
        assert err == b"enclave: standard output could not be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize(
    ("arguments", "fails_with"),
    [
        (("list",), None),
        (("list", "--json"), None),
        (("run", "tiny", "Once", "--json"), None),
        (("run", "tiny", "Once", "--json", "--stream"), None),
        (("list", "--json"), "busy"),
        (("lst", "--json"), None),
    ],
)
def test_a_full_disk_is_told_in_one_line(arguments: tuple[str, ...], fails_with: str | None, script: Script) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        script.running(*arguments, stdout=full.fileno(), fails_with=fails_with) as (process, _),
    ):
        _, err = process.communicate()
        assert err.startswith(b"enclave: standard output could not be written: No space left on device")
        assert err.count(b"\n") == 1
        assert process.returncode == ExitCode.FAILED


@posix_only
def test_a_closed_standard_output_is_no_defect_either(script: Script) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *script.command("list")],
        env=script.environment({}),
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")


@posix_only
def test_events_ends_where_standard_output_is_closed_from_the_start(script: Script) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *script.command("events")],
        env=script.environment({"hangs": True}),
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")


@posix_only
@pytest.mark.parametrize(
    ("options", "fails_with", "remark"),
    [(("-v",), None, b"model "), ((), "worker_died", b"enclave: "), ((), None, b"")],
)
def test_what_is_said_after_an_answer_begins_a_line_where_both_go_to_one_file(
    options: tuple[str, ...], fails_with: str | None, remark: bytes, script: Script, tmp_path: Path
) -> None:
    both, command = tmp_path / "both", script.command("run", "tiny", "Once", *options)
    environment = script.environment({"answer_fails_with": fails_with})
    with both.open("wb") as file:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False)
    answer, newline, rest = both.read_bytes().partition(b"\n")
    assert (answer, bool(newline)) == (TEXT.encode(), bool(remark))
    assert rest.startswith(remark)
    apart = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    assert apart.stdout == TEXT.encode()
    assert apart.stderr.startswith(remark)


@posix_only
def test_an_open_pipe_that_stays_silent_is_told_of(script: Script) -> None:
    with script.running("run", "tiny", "Once", stdin=subprocess.PIPE) as (process, _):
        assert process.stderr is not None
        assert b"waiting for the prompt's text on standard input" in process.stderr.readline()
        out, _ = process.communicate(b"more")
        assert (process.returncode, out) == (ExitCode.OK, TEXT.encode())


class Terminal:
    """A pseudo-terminal with the command on it, as a person sees it."""

    def __init__(self, script: Script, *arguments: str, **wanted: Any) -> None:
        import pty

        self._own, its = pty.openpty()
        self._reports, writing = os.pipe()
        environment = {**script.environment(wanted, writing), "TERM": "dumb"}
        self.process = subprocess.Popen(
            # A session of its own with this terminal, so that the typed Ctrl-C becomes its signal.
            [sys.executable, "-c", _ON_A_TERMINAL, *script.command(*arguments)],
            stdin=its,
            stdout=its,
            stderr=its,
            env=environment,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(its)
        os.close(writing)
        self.shown = ""

    def until(self, text: str) -> str:
        """Reads until `text` is shown; gives what came since the last call."""
        start = len(self.shown)
        while text not in self.shown[start:]:
            piece = os.read(self._own, 4096)
            self.shown += piece.decode()
        return self.shown[start:]

    def report(self) -> str:
        """The daemon's next word."""
        word = b""
        while not word.endswith(b"\n"):
            word += os.read(self._reports, 1)
        return word.decode().strip()

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def end(self) -> str:
        """The rest of what is shown, to the command's end."""
        start = len(self.shown)
        while True:
            try:
                piece = os.read(self._own, 4096)
            except OSError:  # Linux's way to say that nobody has the other side open
                piece = b""
            if not piece:
                self.process.wait()
                return self.shown[start:]
            self.shown += piece.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)
        os.close(self._reports)


_ON_A_TERMINAL = """if True:
    import fcntl, os, sys, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def terminal(script: Script) -> Iterator[Any]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **wanted: Any) -> Terminal:
        opened.append(Terminal(script, *arguments, **wanted))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@posix_only
def test_on_a_terminal_the_answer_ends_in_a_newline_and_carries_no_control_characters(terminal: Any) -> None:
    shown = terminal("run", "tiny", "Once", "--raw", texts=["\x1b[31mred"])
    assert shown.end() == "\ufffd[31mred\r\n"
    assert shown.process.returncode == ExitCode.OK


@posix_only
def test_on_a_terminal_the_start_of_the_daemon_is_told_of_when_it_takes_its_time(
    terminal: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    starting = terminal("ps", connects=False)
    starting.until("starting the daemon")
    starting.type("\x03")
    shown = starting.end()
    assert "Traceback" not in shown
    assert starting.process.returncode == ExitCode.INTERRUPTED


@posix_only
@pytest.mark.parametrize(
    ("options", "template", "count"), [((), True, 1), ((), False, 0), (("--raw",), True, 0), (("--json",), True, 0)]
)
def test_on_a_terminal_a_template_that_is_there_is_told_of_once(
    options: tuple[str, ...], template: bool, count: int, terminal: Any
) -> None:
    shown = terminal("run", "tiny", "Once", *options, template=template).end()
    assert shown.count("chat template is not applied yet") == count


def test_elsewhere_nobody_asks_for_a_template(run: Run, daemon: FakeDaemon) -> None:
    daemon.template = True
    assert run("run", "tiny", "Once").err == ""
    assert "show" not in [name for name, _ in daemon.asked]


@posix_only
@pytest.mark.parametrize("goodbye", ["\x04", "/bye\n", "exit\n"])
def test_the_prompt_loop_answers_until_it_is_left(goodbye: str, terminal: Any) -> None:
    loop = terminal("run", "tiny", template=True)
    greeting = loop.until(">>> ")
    assert "chat template" in greeting
    assert "Ctrl-D" in greeting
    loop.type("Once\n")
    assert TEXT in loop.until(">>> ")
    loop.type(goodbye)
    assert "Traceback" not in loop.end()
    assert loop.process.returncode == ExitCode.OK


@posix_only
def test_ctrl_c_in_the_prompt_loop_cancels_the_answer_and_asks_again(terminal: Any) -> None:
    loop = terminal("run", "tiny", hangs=True)
    loop.until(">>> ")
    loop.type("Once\n")
    assert loop.report() == "hanging"
    loop.type("\x03")
    assert loop.report() == "cancelled"
    assert "Traceback" not in loop.until(">>> ")
    loop.type("\x04")
    loop.end()
    assert loop.process.returncode == ExitCode.OK


@posix_only
def test_an_error_in_the_prompt_loop_is_told_and_the_next_prompt_asked_for(terminal: Any) -> None:
    loop = terminal("run", "tiny", answer_fails_with="context_exceeded")
    loop.until(">>> ")
    loop.type("Once\n")
    assert "hint: " in loop.until(">>> ")
    loop.type("\x04")
    loop.end()
    assert loop.process.returncode == ExitCode.OK


@posix_only
def test_a_model_that_is_not_there_is_told_before_a_prompt_is_asked_for(terminal: Any) -> None:
    shown = terminal("run", "Once upon", fails_with="model_not_found")
    said = shown.end()
    assert ">>>" not in said
    assert "a single argument is the MODEL" in said
    assert shown.process.returncode == ExitCode.FAILED
