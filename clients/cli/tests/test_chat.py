"""`enclave run --messages`: a conversation instead of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave.exceptions import error_for
from enclave.protocol.bodies import TextChunk
from enclave_cli.errors import ExitCode

if TYPE_CHECKING:
    from .conftest import Run
    from .fake_daemon import FakeDaemon

TEXT = "Once upon a time."
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
SCHEMA = {"type": "object"}
CALL: dict[str, object] = {"type": "function", "function": {"name": "look_up", "arguments": "\x1b{}"}}


@pytest.fixture
def talk(tmp_path: Path) -> str:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(TALK))
    return str(path)


def test_a_conversation_is_asked_for_as_the_command_line_says(
    talk: str, tmp_path: Path, run: Run, daemon: FakeDaemon
) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    done = run(
        *("run", "folder:chatty", "--messages", talk, "--temperature", "0", "--max-tokens", "8", "--stop", "x"),
        *("--tools", str(tmp_path / "tools.json"), "--schema", str(tmp_path / "schema.json")),
    )
    assert (done.exit_code, done.out, done.err) == (ExitCode.OK, TEXT, "")
    assert daemon.request("chat") == {
        "model": "folder:chatty",
        "messages": TALK,
        "tools": TOOLS,
        "schema": SCHEMA,
        "temperature": 0.0,
        "max_tokens": 8,
        "stop": ("x",),
    }


def test_without_a_model_the_default_one_answers(talk: str, run: Run, daemon: FakeDaemon) -> None:
    run("run", "--messages", talk)
    assert daemon.request("chat")["model"] == "tiny"


def test_what_was_not_said_of_a_conversation_is_left_to_the_daemon(talk: str, run: Run, daemon: FakeDaemon) -> None:
    run("run", "tiny", "--messages", talk)
    assert daemon.request("chat") == {"model": "tiny", "messages": TALK, "tools": [], "schema": None}


@pytest.mark.parametrize(
    "more",
    [["a prompt"], ["--raw"], ["--tools", "gone.json"], ["--schema", "gone.json"]],
    ids=lambda more: more[0],
)
def test_what_does_not_go_with_a_conversation_is_a_usage_error(
    more: list[str], talk: str, run: Run, daemon: FakeDaemon
) -> None:
    done = run("run", "tiny", *more, "--messages", talk)
    assert done.exit_code == ExitCode.USAGE
    assert "\nhint: " in done.err
    assert daemon.asked == []


@pytest.mark.parametrize("option", ["--tools", "--schema"])
def test_tools_and_a_schema_go_with_a_conversation_only(option: str, talk: str, run: Run, daemon: FakeDaemon) -> None:
    done = run("run", "tiny", "Once", option, talk)
    assert done.exit_code == ExitCode.USAGE
    assert f"{option} goes with --messages" in done.err
    assert daemon.asked == []


def test_the_document_has_the_message_to_be_appended(talk: str, run: Run) -> None:
    document = run("run", "tiny", "--messages", talk, "--json").json
    assert document["text"] == TEXT
    assert document["message"] == {"role": "assistant", "content": TEXT}
    assert "reasoning" not in document


def test_reasoning_is_no_part_of_the_answer(talk: str, run: Run, daemon: FakeDaemon) -> None:
    daemon.chunks = (TextChunk(reasoning="Hm."), TextChunk(text="Yes", tokens=(7,)))
    assert run("run", "tiny", "--messages", talk).out == "Yes"
    assert run("run", "tiny", "--messages", talk, "--json").json["reasoning"] == "Hm."
    lines = run("run", "tiny", "--messages", talk, "--json", "--stream").json_lines
    assert lines[0] == {"type": "chunk", "text": "", "tokens": [], "reasoning": "Hm."}
    assert lines[1] == {"type": "chunk", "text": "Yes", "tokens": [7]}
    assert lines[2]["message"]["role"] == "assistant"


def test_calls_of_tools_are_told_beside_the_text(talk: str, run: Run, daemon: FakeDaemon) -> None:
    daemon.chunks = (TextChunk(tool_calls=(CALL,)),)
    daemon.message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    done = run("run", "tiny", "--messages", talk)
    assert done.out == ""
    assert done.err.startswith('enclave: the model calls {"type": "function", "function": {"name": "look_up"')
    assert "\x1b" not in done.err
    assert run("run", "tiny", "--messages", talk, "--json").err == ""
    lines = run("run", "tiny", "--messages", talk, "--json", "--stream").json_lines
    assert lines[0]["tool_calls"] == [CALL]


def test_a_receipt_goes_with_a_conversation_too(talk: str, run: Run) -> None:
    assert "template     the model's own\n" in run("run", "tiny", "--messages", talk, "--verbose").err


def test_a_daemon_without_chat_says_so(talk: str, run: Run, daemon: FakeDaemon) -> None:
    daemon.texts = ()
    daemon.fails_with = error_for("unsupported", "chat is not built yet", hint="leave it out")
    done = run("run", "tiny", "--messages", talk)
    assert (done.exit_code, done.out) == (ExitCode.FAILED, "")
    assert done.err == "enclave: chat is not built yet\nhint: leave it out\n"


def test_a_model_that_is_not_there_was_not_meant_as_a_prompt(talk: str, run: Run, daemon: FakeDaemon) -> None:
    daemon.texts = ()
    daemon.fails_with = error_for("model_not_found", "there is no model 'tin'", hint="look")
    assert run("run", "tin", "--messages", talk).err == "enclave: there is no model 'tin'\nhint: look\n"
