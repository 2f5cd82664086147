"""`enclave bridge` as a plugin sees it: a process with two pipes, a real daemon behind it, and the page's examples."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave.protocol.messages import DAEMON_MESSAGES
from enclave_fake.engine import counting_byte
from tests.conftest import StartDaemon
from tests.integration.wire import wait_for_instance
from tests.running import BIN, END_SECONDS, REPOSITORY, RunningDaemon, daemon_environment, end_daemon_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and sockets are waited for together on POSIX only")

SECONDS = 60.0
"""Only ends a test that has failed already."""
SLOW = "fake:slow?tokens_per_second=50"
LONG = 4000
"""Tokens of an answer that would take over a minute."""

UNREAD_BYTES_MAX = "300000"
"""What the daemon keeps for a client that does not read: some ten thousand of the fake model's tokens."""

PAGE = (REPOSITORY / "docs/bridge.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


class BridgeProcess:
    """A bridge and what it says, line by line."""

    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [BIN / "enclave", "bridge", *options],
            env=daemon_environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._unread = b""

    def say(self, *lines: dict[str, Any], raw: bytes = b"") -> None:
        self.stdin.write(raw + b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self.stdin.flush()

    def generate(self, request_id: int, model: str, max_tokens: int = 3, **header: Any) -> None:
        body = {"prompt": "x", "temperature": 0}
        line = {"type": "request", "id": request_id, "method": "generate", "model": model, "max_tokens": max_tokens}
        self.say({**line, **header, "body": body})

    def line(self) -> dict[str, Any]:
        """The next one; raises EOFError when there is none."""
        while b"\n" not in self._unread:
            assert select.select([self.stdout], [], [], SECONDS)[0], f"no line within {SECONDS} s"
            piece = os.read(self.stdout.fileno(), 65536)
            if not piece:
                raise EOFError
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def until(self, found: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The lines up to the first that is so, without those of progress."""
        lines: list[dict[str, Any]] = []
        while not lines or not found(lines[-1]):
            lines += [line for line in [self.line()] if line["type"] != "progress"]
        return lines

    def until_end(self, request_id: int) -> list[dict[str, Any]]:
        """The lines up to a request's result or error."""
        return self.until(lambda line: line["type"] in ("result", "error") and line.get("id") == request_id)

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Ends its input; gives the exit code, the lines that are left, and standard error."""
        if not self.stdin.closed:
            self.stdin.close()
        lines: list[dict[str, Any]] = []
        try:
            while True:
                lines.append(self.line())
        except EOFError:
            return (self.process.wait(END_SECONDS), lines, self.errors())

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(END_SECONDS)


Start = Callable[..., BridgeProcess]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts bridges; whatever a test leaves of them is killed."""
    started: list[BridgeProcess] = []

    def start(*options: str) -> BridgeProcess:
        started.append(BridgeProcess(home, *options))
        return started[-1]

    yield start
    for bridge in started:
        bridge.close()


@pytest.fixture
def bridge(daemon: RunningDaemon, start: Start) -> BridgeProcess:
    """A bridge to a running daemon, that would start no other."""
    return start("--no-start")


def text_of(lines: list[dict[str, Any]], request_id: int = 1) -> str:
    chunks = [line for line in lines if line["type"] == "chunk" and line["id"] == request_id]
    return "".join(value["text"] for chunk in chunks for value in chunk["body"])


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [line["type"] for line in lines]


# --- answers ---


def test_an_answer_streams(bridge: BridgeProcess) -> None:
    bridge.say({"type": "hello", "client": "test", "priority": "interactive"})
    bridge.generate(1, "fake:a", max_tokens=5)
    lines = bridge.until_end(1)
    assert kinds(lines) == ["welcome", *["chunk"] * 5, "result"]
    assert text_of(lines) == "1 2 3"
    assert lines[-1]["backend"] == "fake"
    assert lines[-1]["body"]["finish_reason"] == "length"


def test_two_requests_run_at_once(bridge: BridgeProcess) -> None:
    bridge.generate(1, SLOW, max_tokens=LONG)
    bridge.until(lambda line: line["type"] == "chunk")
    bridge.generate(2, SLOW, max_tokens=3)
    lines = bridge.until_end(2)
    assert text_of(lines, 2) == "1 2"
    bridge.say({"type": "cancel", "id": 1})
    assert bridge.until_end(1)[-1]["code"] == "cancelled"


def test_a_newer_request_with_the_same_key_cancels_the_older(bridge: BridgeProcess) -> None:
    bridge.generate(1, SLOW, max_tokens=LONG, supersedes="cursor")
    bridge.until(lambda line: line["type"] == "chunk")
    bridge.generate(2, SLOW, max_tokens=1, supersedes="cursor")
    assert bridge.until_end(1)[-1]["code"] == "cancelled"
    assert bridge.until_end(2)[-1]["type"] == "result"


def test_lines_that_mean_nothing_are_answered_and_do_no_harm(daemon: RunningDaemon, bridge: BridgeProcess) -> None:
    bridge.generate(1, SLOW, max_tokens=LONG)
    bridge.until(lambda line: line["type"] == "chunk")
    garbage = [b"garbage", b"\xff\xfe", b"[]", b'{"type": "welcome"}', b'{"type": "request", "id": 1}', b"[" * 50_000]
    bridge.say(raw=b"\n".join(garbage) + b"\n")
    bridge.generate(2, "fake:a", max_tokens=1, credit="much")
    lines = bridge.until_end(2)
    errors = [line for line in lines if line["type"] == "error"]
    assert [(line.get("id"), line["code"]) for line in errors] == [(None, "bad_message")] * 6 + [(2, "bad_request")]
    bridge.say({"type": "cancel", "id": 1})
    assert bridge.until_end(1)[-1]["code"] == "cancelled"
    assert "ended" not in daemon.log()


def test_a_long_prompt_goes_through_whole(bridge: BridgeProcess) -> None:
    twelve = 'é\u2028\0"\\😀'  # of the fake model's tokens, which are bytes
    line = {"type": "request", "id": 1, "method": "generate", "model": "fake:echo?mode=echo&context=300000"}
    body = {"prompt": twelve * 6_000, "temperature": 0}
    bridge.say({**line, "context": 300_000, "max_tokens": 240, "body": body})
    lines = bridge.until_end(1)
    assert text_of(lines) == twelve * 20
    assert lines[-1]["body"]["usage"]["prompt_tokens"] >= 12 * 6_000


def test_a_result_of_a_daemon_with_nothing_loaded_has_its_fields(bridge: BridgeProcess) -> None:
    bridge.say({"type": "request", "id": 1, "method": "instances.list"})
    assert bridge.until_end(1)[-1]["body"] == {"instances": []}
    bridge.generate(2, "fake:a", max_tokens=0)
    assert bridge.until_end(2)[-1]["body"]["usage"]["completion_tokens"] == 0


def test_a_field_in_the_wrong_place_is_refused_and_nothing_is_generated(bridge: BridgeProcess) -> None:
    body = {"prompt": "x", "max_tokens": 2}
    bridge.say({"type": "request", "id": 1, "method": "generate", "model": "fake:a", "body": body})
    refused = bridge.until_end(1)[-1]
    assert (refused["code"], refused["field"]) == ("bad_request", "max_tokens")
    assert "beside `method`" in refused["message"]


# --- a slow reader ---


def test_a_reader_that_is_slow_loses_nothing_and_holds_up_nobody(start_daemon: StartDaemon, start: Start) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": UNREAD_BYTES_MAX})
    model, tokens = "fake:a?context=300000", 40_000
    with daemon.client() as other:
        bridge = start("--no-start")
        bridge.generate(1, model, max_tokens=tokens, context=300_000)
        wait_for_instance(other, lambda instance: instance.get("paused", 0) == 1)
        assert other.generate(model, "x", max_tokens=5, temperature=0).result().text == "1 2 3"
        bridge.generate(2, model, max_tokens=5)
        lines = bridge.until_end(1)
        assert text_of(lines).encode() == bytes(counting_byte(index) for index in range(tokens))
        assert text_of(lines, 2) == "1 2 3"
        assert lines[-1]["body"]["usage"]["completion_tokens"] == tokens


def test_a_cancel_gets_through_while_the_output_is_full(start_daemon: StartDaemon, start: Start) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_UNREAD_BYTES_MAX": UNREAD_BYTES_MAX})
    with daemon.client() as other:
        bridge = start("--no-start")
        bridge.generate(1, "fake:a?context=300000", max_tokens=290_000, context=300_000)
        wait_for_instance(other, lambda instance: instance.get("paused", 0) == 1)
        bridge.say({"type": "cancel", "id": 1})
        wait_for_instance(other, lambda instance: instance.get("leases", 0) == 0)
        assert bridge.until_end(1)[-1]["code"] == "cancelled"


def test_a_client_may_grant_by_itself(bridge: BridgeProcess) -> None:
    bridge.generate(1, "fake:a", max_tokens=9, credit=2)
    bridge.until(lambda line: line["type"] == "chunk")
    (second,) = bridge.until(lambda line: line["type"] == "chunk")
    bridge.say({"type": "ping", "data": "AA=="})
    assert kinds(bridge.until(lambda line: line["type"] == "pong")) == ["pong"]
    bridge.say({"type": "credit", "id": 1, "chunks": 1})
    (joined, result) = bridge.until_end(1)
    assert (joined["seq"], joined["count"]) == (second["seq"] + 1, 7)
    assert result["type"] == "result"


# --- the end ---


def test_after_the_end_of_input_the_answers_come_to_theirs(bridge: BridgeProcess) -> None:
    bridge.generate(1, SLOW, max_tokens=10)
    bridge.generate(2, "fake:b", max_tokens=200, credit=1)
    code, lines, errors = bridge.end()
    assert (code, errors) == (0, "")
    assert kinds(lines)[0] == "welcome"
    assert {line["id"] for line in lines if line["type"] == "result"} == {1, 2}
    assert text_of(lines, 1) == "1 2 3 4 5 "
    assert len(text_of(lines, 2)) == 200


def test_after_the_end_of_input_a_subscription_ends(bridge: BridgeProcess) -> None:
    bridge.say({"type": "request", "id": 1, "method": "events.subscribe", "body": {"topics": ["instances"]}})
    bridge.until(lambda line: line["type"] == "chunk")
    bridge.generate(2, "fake:a")
    code, lines, errors = bridge.end()
    assert (code, errors) == (0, "")
    assert {(line["id"], line.get("code")) for line in lines if line["type"] in ("result", "error")} == {
        (1, "cancelled"),
        (2, None),
    }


def test_a_pipe_of_lines_is_answered_and_needs_no_last_newline(daemon: RunningDaemon, home: Path) -> None:
    done = subprocess.run(
        [BIN / "enclave", "bridge"],
        env=daemon_environment(home),
        input=b'{"type": "ping", "data": "AA=="}\n\n{"type": "request", "id": 1, "method": "daemon.health"}',
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert kinds(lines) == ["welcome", "pong", "result"]
    assert lines[-1]["body"]["status"] == "ok"


def test_a_reader_that_goes_away_cancels_what_is_open(daemon: RunningDaemon, bridge: BridgeProcess) -> None:
    with daemon.client() as watcher:
        bridge.generate(1, "fake:hung?never_answer=true")
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 1)
        bridge.stdout.close()
        assert bridge.process.wait(END_SECONDS) == 0
        assert bridge.errors() == ""
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 0)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, "bye"])
def test_signals_and_bye_end_it_and_what_is_open(
    daemon: RunningDaemon, bridge: BridgeProcess, ending: signal.Signals | str
) -> None:
    codes: dict[signal.Signals | str, int] = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130, "bye": 0}
    with daemon.client() as watcher:
        bridge.generate(1, SLOW, max_tokens=LONG)
        bridge.until(lambda line: line["type"] == "chunk")
        if isinstance(ending, signal.Signals):
            bridge.process.send_signal(ending)
        else:
            bridge.say({"type": ending})
        assert bridge.process.wait(END_SECONDS) == codes[ending]
        assert bridge.errors() == ""
        wait_for_instance(watcher, lambda instance: instance.get("leases", 0) == 0)


@pytest.mark.parametrize("ending", [None, signal.SIGTERM])
def test_standard_output_blocks_again_afterwards(
    daemon: RunningDaemon, home: Path, ending: signal.Signals | None
) -> None:
    reader, writer = os.pipe()
    try:
        with subprocess.Popen(
            [BIN / "enclave", "bridge"], env=daemon_environment(home), stdin=subprocess.PIPE, stdout=writer
        ) as process:
            assert process.stdin is not None
            process.stdin.write(b'{"type": "hello"}\n')
            process.stdin.flush()
            assert b"welcome" in os.read(reader, 4096)
            assert not os.get_blocking(writer)
            if ending is not None:
                process.send_signal(ending)
            process.stdin.close()
            process.wait(END_SECONDS)
        assert os.get_blocking(writer)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line_and_exit_code_1(daemon: RunningDaemon, home: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [BIN / "enclave", "bridge"],
            env=daemon_environment(home),
            input=b'{"type": "hello"}\n',
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"enclave: standard output could not be written: No space left on device\n"


def test_a_name_that_is_too_long_is_a_wrong_command_line(start: Start) -> None:
    code, lines, errors = start("--name", "x" * 300).end()
    assert (code, lines) == (2, [])
    assert errors.startswith("enclave: --name: ")


def test_it_can_be_typed_at_on_a_terminal(daemon: RunningDaemon, home: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [BIN / "enclave", "bridge"], env=daemon_environment(home), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.write(ours, b'{"type": "ping", "data": "AA=="}\n')
        seen = b""
        while b'"pong"' not in seen:
            assert select.select([ours], [], [], SECONDS)[0]
            seen += os.read(ours, 4096)
        os.write(ours, b"\x04")
        assert process.wait(END_SECONDS) == 0
    os.close(ours)
    os.close(theirs)


# --- daemons come and go ---


def test_a_daemon_that_cannot_be_reached_at_the_start_is_an_error_line_and_exit_code_4(start: Start) -> None:
    code, (line,), errors = start("--no-start").end()
    assert (code, errors) == (4, "")
    assert (line["type"], line["code"]) == ("error", "daemon_unavailable")
    assert "--no-start" in line["hint"]


def test_a_daemon_is_started_and_another_after_its_end(start: Start, home: Path) -> None:
    bridge = start()
    bridge.generate(1, "fake:a")
    assert kinds(bridge.until_end(1)) == ["welcome", *["chunk"] * 3, "result"]
    end_daemon_of(home)
    bridge.generate(2, "fake:a")
    assert kinds(bridge.until_end(2)) == ["welcome", *["chunk"] * 3, "result"]
    assert bridge.end()[0] == 0
    end_daemon_of(home)


def test_a_daemon_that_dies_ends_each_open_request_once_and_the_bridge_stays(
    daemon: RunningDaemon, bridge: BridgeProcess
) -> None:
    bridge.say({"type": "hello", "client": "stayer"})
    for request_id in (1, 2):
        bridge.generate(request_id, SLOW, max_tokens=LONG)
        bridge.until(lambda line, one=request_id: line["type"] == "chunk" and line["id"] == one)
    daemon.note_children()
    daemon.kill()
    lost = [line for line in bridge.until_end(2) if line["type"] == "error"]
    assert [(line["id"], line["code"]) for line in lost] == [(1, "connection_lost"), (2, "connection_lost")]

    bridge.generate(3, "fake:a")
    (unreachable,) = bridge.until_end(3)
    assert unreachable["code"] == "daemon_unavailable"

    daemon.start()
    bridge.say({"type": "cancel", "id": 2})
    bridge.generate(4, SLOW, max_tokens=LONG)
    assert kinds(bridge.until(lambda line: line["type"] == "chunk")) == ["welcome", "chunk"]
    with daemon.client() as watcher:
        (instance,) = watcher.instances()
    assert [asker.name for asker in instance.askers] == ["stayer"]
    bridge.say({"type": "bye"})
    assert bridge.process.wait(END_SECONDS) == 0


def test_a_session_that_the_daemon_refuses_is_told_and_another_can_be_had(
    start_daemon: StartDaemon, start: Start
) -> None:
    daemon = start_daemon({"ENCLAVE_BROKER_SESSIONS_MAX": "1"})
    with daemon.client() as other:
        other.health()
        bridge = start("--no-start")
        bridge.generate(1, "fake:a")
        refused = bridge.until_end(1)
        assert [(line["type"], line.get("id"), line["code"]) for line in refused] == [
            ("error", None, "busy"),
            ("error", 1, "busy"),
        ]
    bridge.generate(2, "fake:a")
    while bridge.until_end(2)[-1]["type"] == "error":  # until the daemon has noticed that the other left
        bridge.generate(2, "fake:a")


# --- the page ---


def page_lines() -> list[tuple[str, dict[str, Any]]]:
    (session,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [(who, json.loads(line)) for who, _, line in (row.partition("  ") for row in session.splitlines())]


@pytest.mark.usefixtures("llama_cpp")
def test_the_pages_session_goes_as_it_says(bridge: BridgeProcess) -> None:
    told, came = page_lines(), list[dict[str, Any]]()
    for who, line in told:
        if who.strip() == "you":
            bridge.say(line)
        elif line["type"] in ("result", "error"):
            came += bridge.until_end(line["id"])
    daemon_types = {kind.TYPE for kind in DAEMON_MESSAGES}
    bridge_says = [line for who, line in told if who.strip() == "bridge"]
    assert {line["type"] for line in bridge_says} <= daemon_types

    def shape(lines: list[dict[str, Any]]) -> list[tuple[object, ...]]:
        # How far the second request gets before the cancel arrives is a matter of luck.
        firm = [line for line in lines if line["type"] != "progress" and (line.get("id") != 2 or "code" in line)]
        return [(line["type"], line.get("id"), line.get("code"), sorted(line.keys() - {"numbers"})) for line in firm]

    assert shape(came) == shape(bridge_says)


def example(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_text(FILES[name], encoding="utf-8")
    return path


def example_environment(home: Path, **more: str) -> dict[str, str]:
    return daemon_environment(home, {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more})


NODE_DRIVER = """
const { generate, close } = require(process.argv[2]);
(async () => {
  const slow = generate("fake:slow?tokens_per_second=50", { prompt: "x" }, { max_tokens: 4000 }, () => slow.cancel());
  const texts = [];
  const parameters = { prompt: "a\\u2028b\\u0000", temperature: 0 };
  const odd = generate("fake:echo?mode=echo", parameters, {}, (text) => texts.push(text));
  const wrong = generate("no such model", { prompt: "x" }, {}, () => {});
  const ends = await Promise.allSettled([slow.answer, odd.answer, wrong.answer]);
  console.log(JSON.stringify([ends.map((end) => end.reason?.code ?? end.status), texts.join("")]));
  close();
})();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_pages_example_for_node_runs(daemon: RunningDaemon, home: Path, tmp_path: Path) -> None:
    script = example("enclave.js", tmp_path)
    driver = tmp_path / "driver.js"
    driver.write_text(NODE_DRIVER)

    def node(*arguments: str | Path) -> str:
        return subprocess.run(
            ["node", *arguments],
            env=example_environment(home),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        ).stdout

    assert node(script, "fake:a", "count") == "1 2 3 4 5 6 7 8 9 10 11 12 13 14\n(length, 32 tokens)\n"
    assert json.loads(node(driver, script)) == [["cancelled", "fulfilled", "model_not_found"], "a\u2028b\0"]


NEOVIM_DRIVER = """
local enclave = dofile(vim.env.EXAMPLE)
local namespace = vim.api.nvim_create_namespace("enclave")

local function shows(wanted)
  return vim.wait(60000, function()
    local mark = vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })[1]
    return mark and (wanted == nil or mark[4].virt_text[1][1] == wanted)
  end, 10)
end

vim.o.virtualedit = "onemore"
vim.api.nvim_buf_set_lines(0, 0, -1, false, { "first", "count: ", "last" })
vim.api.nvim_win_set_cursor(0, { 2, 7 })
enclave.setup()
enclave.model = "fake:slow?tokens_per_second=50&sequences=1"
enclave.max_tokens = 4000
vim.api.nvim_exec_autocmds("TextChangedI", {})
assert(shows(nil), "the first completion is shown as it comes")
enclave.max_tokens = 3
vim.api.nvim_exec_autocmds("TextChangedI", {})
assert(shows("1 2"), "the second one is shown, for which the first had to end")
enclave.accept()
local text = vim.fn.json_encode(vim.api.nvim_buf_get_lines(0, 0, -1, false))
vim.fn.writefile({ text, vim.fn.json_encode(vim.api.nvim_win_get_cursor(0)) }, vim.env.OUTCOME)
"""


@pytest.mark.skipif(shutil.which("nvim") is None, reason="Neovim is not installed")
def test_the_pages_example_for_neovim_completes_and_supersedes(
    daemon: RunningDaemon, home: Path, tmp_path: Path
) -> None:
    driver, outcome = tmp_path / "driver.lua", tmp_path / "outcome"
    driver.write_text(NEOVIM_DRIVER)
    more = {"EXAMPLE": str(example("enclave.lua", tmp_path)), "OUTCOME": str(outcome), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["nvim", "--headless", "-u", "NONE", "-i", "NONE", "-n", "-c", f"luafile {driver}", "-c", "qa!"],
        env=example_environment(home, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert outcome.is_file(), done.stderr
    text, cursor = map(json.loads, outcome.read_text().splitlines())
    assert text == ["first", "count: 1 2", "last"]
    assert cursor == [2, 10]
    with daemon.client() as client:
        cancelled = [record.data for record in client.why(limit=1000) if record.kind == "event RequestCancelled"]
        assert str((cancelled[0] or {})["request"]).endswith("/1")
        wait_for_instance(client, lambda instance: not instance.get("askers"))
