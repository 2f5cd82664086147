"""embed, rerank, tokenize and render: what is sent, and what is made of the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave.protocol.bodies import Ranked
from enclave.protocol.messages import Progress, Stage
from enclave_cli.commands import embed
from enclave_cli.commands.tokenize import ids_in
from enclave_cli.errors import CommandError, ExitCode
from enclave_cli.stdout import ExactText

if TYPE_CHECKING:
    from .conftest import Run
    from .fake_daemon import FakeDaemon

TALK = [{"role": "user", "content": "Hello"}]
USAGE = {
    "prompt_tokens": 5,
    "cached_tokens": 3,
    "completion_tokens": 42,
    "uncached_reason": None,
    "left_out_tokens": 0,
    "shifted_tokens": 0,
}


# --- embed ---


def test_embed_asks_for_what_the_command_line_says(run: Run, daemon: FakeDaemon) -> None:
    daemon.progress = (Progress(id=1, stage=Stage.LOADING, fraction=0.4),)
    done = run("embed", "tiny", "a", "b", "--no-normalize", "--backend", "fake", "--context", "512")
    assert (done.exit_code, done.err) == (ExitCode.OK, "")
    assert daemon.request("embed") == {
        "model": "tiny",
        "texts": ["a", "b"],
        "normalize": False,
        "backend": "fake",
        "context": 512,
    }
    run("embed", "tiny", "a")
    assert daemon.asked[-2] == ("embed", {"model": "tiny", "texts": ["a"], "normalize": True})


def test_embed_shows_how_each_vector_begins(run: Run) -> None:
    lines = run("embed", "tiny", "x" * 100 + "\x1b", "The\nend").out.splitlines()
    assert lines[0].split() == ["TEXT", "DIMENSIONS", "VECTOR"]
    assert lines[1] == "x" * 39 + "…           5  0.5000 -0.2500 0.1250 0.0000 …"
    assert lines[2] == "The end" + " " * 44 + "5  1.0000 0.0000 0.0000 0.0000 …"


def test_a_short_vector_is_shown_whole() -> None:
    assert embed.beginning([1.0, 0.5]) == "1.0000 0.5000"


def test_embed_as_json_has_the_whole_vectors_and_the_receipt(run: Run) -> None:
    document = run("embed", "tiny", "a", "b", "--json").json
    assert document["vectors"] == [[0.5, -0.25, 0.125, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]]
    assert document["dimensions"] == 5
    assert document["usage"] == USAGE
    assert document["receipt"]["backend"] == "fake"


# --- rerank ---


def test_rerank_asks_for_what_the_command_line_says(run: Run, daemon: FakeDaemon) -> None:
    run("rerank", "tiny", "who?", "--top", "2", "--priority", "background", stdin=b"I\nyou\n")
    assert daemon.request("connect")["priority"] == "background"
    assert daemon.request("rerank") == {"model": "tiny", "query": "who?", "documents": ["I", "you"], "top": 2}


def test_rerank_shows_the_best_document_first(run: Run) -> None:
    assert run("rerank", "tiny", "who?", "I", "you\x1b[2J").out.splitlines() == [
        "RANK    SCORE  DOCUMENT",
        "   1   0.7500  you\ufffd[2J",
        "   2  -0.5000  I",
    ]


def test_rerank_as_json_has_each_document_beside_its_number(run: Run) -> None:
    document = run("rerank", "tiny", "who?", "I", "you", "--json").json
    assert document["ranking"] == [
        {"index": 1, "score": 0.75, "document": "you"},
        {"index": 0, "score": -0.5, "document": "I"},
    ]
    assert document["usage"] == USAGE
    assert document["receipt"]["model"] == "tiny"


def test_a_number_without_a_document_is_no_defect_of_the_command(run: Run, daemon: FakeDaemon) -> None:
    daemon.ranking = (Ranked(index=7, score=1.0),)
    assert run("rerank", "tiny", "who?", "I").out.splitlines()[1].split() == ["1", "1.0000"]
    assert run("rerank", "tiny", "who?", "I", "--json").json["ranking"][0]["document"] is None


# --- tokenize ---


@pytest.mark.parametrize(
    ("arguments", "stdin", "sent"),
    [
        (["Once"], None, {"text": "Once", "special": True, "parse_special": False}),
        ([], b"Once\n", {"text": "Once", "special": True, "parse_special": False}),
        (["", "--no-special"], b"Once", {"text": "", "special": False, "parse_special": False}),
        (["<s>", "--parse-special"], None, {"text": "<s>", "special": True, "parse_special": True}),
    ],
)
def test_tokenize_prints_the_ids_on_one_line(
    arguments: list[str], stdin: bytes | None, sent: dict[str, object], run: Run, daemon: FakeDaemon
) -> None:
    assert run("tokenize", "tiny", *arguments, stdin=stdin).out == "1 403 407\n"
    assert daemon.request("tokenize") == {"model": "tiny", **sent}
    assert run("tokenize", "tiny", "a", "--json").json == {"tokens": [1, 403, 407]}


def test_ids_become_exactly_their_text(run: Run, daemon: FakeDaemon) -> None:
    assert run("tokenize", "tiny", "--ids", "1", "403", "407").out == "<s>Once\x1b upon"
    assert daemon.request("detokenize") == {"model": "tiny", "tokens": [1, 403, 407]}
    assert run("tokenize", "tiny", "--ids", "1", "--json").json == {"text": "<s>Once\x1b upon"}


@pytest.mark.parametrize("typed", ["1 403 407", "1,403,407", "[1, 403, 407]\n", " 1\n403\t407 "])
def test_ids_may_be_pasted_as_a_line_or_as_json(typed: str) -> None:
    assert ids_in(typed) == [1, 403, 407]


@pytest.mark.parametrize("typed", ["one", "-1", "1.5", "²", "2147483648", "1 0x1f"])
def test_what_is_no_token_id_is_a_usage_error(typed: str) -> None:
    with pytest.raises(CommandError) as error:
        ids_in(typed)
    assert error.value.problem.exit_code == ExitCode.USAGE
    assert "whole numbers" in error.value.problem.hint


# --- render ---


def test_on_a_terminal_a_text_loses_its_control_characters_and_ends_in_one_newline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ("a\x1b\tb", "a\x1b\tb\n"):
        shown = ExactText(terminal=True)
        shown.write(text)
        shown.end()
        shown.end()
        assert capsys.readouterr().out == "a\ufffd\tb\n"


def test_render_prints_exactly_what_the_model_would_see(tmp_path: Path, run: Run, daemon: FakeDaemon) -> None:
    for name, value in (("talk", TALK), ("tools", [{"type": "function"}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "mine.jinja").write_text("{{ messages }}\n")
    done = run(
        *("render", "tiny", "--messages", str(tmp_path / "talk.json"), "--tools", str(tmp_path / "tools.json")),
        *("--template", str(tmp_path / "mine.jinja"), "--no-generation-prompt"),
    )
    assert (done.exit_code, done.out, done.err) == (ExitCode.OK, "<s>Once\x1b upon", "")
    assert daemon.request("render") == {
        "model": "tiny",
        "messages": TALK,
        "tools": [{"type": "function"}],
        "template": "{{ messages }}\n",
        "add_generation_prompt": False,
    }


def test_render_as_json_says_where_the_template_came_from(run: Run, daemon: FakeDaemon) -> None:
    done = run("render", "tiny", "--messages", "-", "--json", stdin=json.dumps(TALK).encode())
    assert done.json == {"text": "<s>Once\x1b upon", "template": "the model's own"}
    asked = daemon.request("render")
    assert (asked["tools"], asked["template"], asked["add_generation_prompt"]) == ([], None, True)
