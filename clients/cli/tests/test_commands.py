"""The commands that ask and print: what goes to the daemon, and what is made of its answer."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast
from unittest.mock import Mock

import pytest

from enclave import discovery
from enclave.discovery import Endpoint
from enclave.exceptions import error_for
from enclave.protocol.bodies import AskerInfo, EventChunk, InstanceInfo, JsonMap, MemoryInfo, WallsInfo, WhyRecord
from enclave.protocol.codec import encode
from enclave_cli import running
from enclave_cli.commands import ps, serve, unload, why
from enclave_cli.errors import ExitCode

if TYPE_CHECKING:
    from .conftest import Run, Script
    from .fake_daemon import FakeDaemon


READY = InstanceInfo(
    id="i1", model="tiny", state="ready", wanted="ready", backend="fake", memory=MemoryInfo(estimated_bytes=2 * 1024**2)
)


def test_list_marks_the_default_model_and_says_what_to_know_of_it(run: Run) -> None:
    lines = run("list").out.splitlines()
    assert lines[0].split() == ["NAME", "SOURCE", "SIZE", "BACKENDS", "NOTE"]
    assert lines[1].split(maxsplit=6) == ["*", "tiny", "builtin", "1.1", "MiB", "fake", "Too small to be right."]
    assert lines[2].split(maxsplit=5) == ["folder:other", "folder", "4.0", "GiB", "fake,", "llama_cpp  -"]


def test_list_without_models_says_how_to_run_one(run: Run, daemon: FakeDaemon) -> None:
    daemon.models_known = ()
    assert "enclave run" in run("list").out
    assert run("list", "--json").json == {"models": []}


def test_list_as_json_has_the_models_as_the_daemon_tells_them(run: Run) -> None:
    (tiny, other) = run("list", "--json").json["models"]
    assert tiny["name"] == "tiny"
    assert tiny["default"] is True
    assert tiny["size"] == 1_185_376
    assert other["path"] is None


def test_show_takes_a_path_from_where_the_person_stands(
    run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("show", "some.gguf")
    assert daemon.request("show") == {"model": str(tmp_path / "some.gguf")}


def test_show_tells_what_the_header_says(run: Run) -> None:
    done = run("show", "tiny")
    assert "architecture  llama" in done.out
    assert "parameters    260 K" in done.out
    assert "context       512 tokens" in done.out
    assert "licence" not in done.out
    assert run("show", "tiny", "--json").json["header"]["context_length"] == 512


def test_ps_tells_memory_queue_and_walls(run: Run) -> None:
    heading, row = run("ps").out.splitlines()
    assert heading.split() == [
        "MODEL",
        "STATE",
        "BACKEND",
        "DEVICE",
        "MEMORY",
        "ESTIMATED",
        "RUNNING",
        "QUEUED",
        "CLIENTS",
        "THREADS",
        "CONTEXT",
        "UP",
        "WALLS",
        "PID",
        "ID",
    ]
    assert " ".join(row.split()) == (
        "tiny ready fake cpu 3.0 MiB 2.0 MiB 1 2 my-editor (2), enclave-cli (1) 1 2,048 1 min 15 s"
        " partial (no landlock) 4711 i1"
    )


LONG = "/home/someone/" + "deep/" * 100 + "model.gguf"


def test_ps_keeps_a_long_path_from_padding_the_other_lines(run: Run, daemon: FakeDaemon) -> None:
    daemon.instances_known = (READY, replace(READY, id="i2", model=LONG))
    heading, short, long = run("ps").out.splitlines()
    assert long.startswith(LONG + "  ready")
    assert max(len(heading), len(short)) < 200
    assert run("ps", "--json").json["instances"][1]["model"] == LONG


def test_on_a_terminal_ps_shortens_a_long_path_and_keeps_the_files_name() -> None:
    long = ps.text((replace(READY, model=LONG),), terminal=True).splitlines()[1]
    assert long.startswith("/home/someone/")
    assert "…/model.gguf  ready" in long


HOSTILE = "\x1b]0;x\x07\x9b2J\u202e\r\n\x7f"


def test_no_name_or_text_of_others_reaches_the_terminal_with_control_characters(run: Run, daemon: FakeDaemon) -> None:
    asker = AskerInfo(session="c1", name=f"a{HOSTILE}b", running=1)
    hostile = replace(READY, model=f"m{HOSTILE}", device=HOSTILE, id=f"i{HOSTILE}", askers=(asker,))
    model = replace(
        daemon.models_known[0],
        name=f"n{HOSTILE}",
        note=HOSTILE,
        aliases=(HOSTILE,),
        backends=(HOSTILE,),
        source=f"s{HOSTILE}",
    )
    daemon.instances_known = (hostile,)
    daemon.models_known = (model,)
    daemon.records = (
        WhyRecord(number=1, at=0.0, kind=f"k{HOSTILE}", text=HOSTILE, data={f"a{HOSTILE}": HOSTILE, "asker": HOSTILE}),
    )
    daemon.downloads_known = ({f"id{HOSTILE}": HOSTILE},)
    daemon.news = (
        EventChunk(topic="instances", name="snapshot", number=1, at=0.0, data={f"i{HOSTILE}": encode(hostile)}),
        EventChunk(topic="models", name="added", number=1, at=0.0, key=HOSTILE, data=encode(model)),
        EventChunk(topic=f"t{HOSTILE}", name=f"n{HOSTILE}", number=1, at=0.0, key="k", data={HOSTILE: HOSTILE}),
    )
    for command in ("ps", "list", "why", "events", "downloads", "show"):
        for options in ((), ("--json",)):
            done = run(command, *(("tiny",) if command == "show" else ()), *options)
            assert done.exit_code == ExitCode.OK, done.err
            # `show` and JSON may turn the writing's direction, which changes how a line looks and nothing else.
            control = {c for c in done.out if unicodedata.category(c) == "Cc"} - {"\n"}
            assert control == set(), (command, options)


def test_ps_says_so_when_nothing_is_loaded(run: Run, daemon: FakeDaemon) -> None:
    daemon.instances_known = ()
    assert "No model is loaded" in run("ps").out
    assert run("ps", "--json").json == {"instances": []}


@pytest.mark.parametrize(
    ("state", "wanted", "pinned", "shown"),
    [
        ("ready", "ready", False, "ready"),
        ("loading", "ready", False, "loading"),
        ("loading", "unloaded", False, "loading, to be unloaded"),
        ("unloading", "unloaded", False, "unloading"),
        ("ready", "ready", True, "ready, pinned"),
    ],
)
def test_an_instances_state_says_what_it_is_to_become(state: str, wanted: str, pinned: bool, shown: str) -> None:
    instance = InstanceInfo(id="i", model="m", state=state, wanted=wanted, backend="b", pinned=pinned)
    assert ps.state(instance) == shown


def test_walls_name_what_is_missing() -> None:
    assert ps.walls(WallsInfo(state="full")) == "full"
    assert ps.walls(WallsInfo(state="none", missing=("landlock", "seccomp"))) == "none (no landlock, seccomp)"
    assert ps.walls(None) == ""


def test_clients_of_one_name_are_counted_together_and_no_name_reaches_the_terminal_as_it_is() -> None:
    askers = (
        AskerInfo(session="c1", name="cli", running=1),
        AskerInfo(session="c2", name="cli", queued=2),
        AskerInfo(session="c3", name="\x1b[2J\n" + "x" * 256, running=1),
        AskerInfo(session="c4", name=" ", running=1),
    )
    shown = ps.clients(replace(READY, askers=askers))
    assert shown == "cli (3), \ufffd[2J " + "x" * 26 + "… (1), unnamed (1)"


def test_ps_tells_the_paused_apart() -> None:
    assert "PAUSED" not in ps.text((READY,))
    heading, row = ps.text((replace(READY, leases=3, paused=1),)).splitlines()
    for name, number in (("RUNNING", "2"), ("PAUSED", "1")):
        assert row[: heading.index(name) + len(name)].endswith(f" {number}")


def test_without_requests_ps_has_no_column_of_clients(run: Run, daemon: FakeDaemon) -> None:
    daemon.instances_known = (READY,)
    assert "CLIENTS" not in run("ps").out
    assert run("ps", "--json").json["instances"][0]["askers"] == []


def test_ps_as_json_has_everything_of_the_clients(run: Run) -> None:
    assert run("ps", "--json").json["instances"][0]["askers"][0] == {
        "session": "c1",
        "name": "my-editor",
        "pid": 4712,
        "program": "/usr/bin/editor",
        "running": 1,
        "queued": 1,
    }


def test_plugins_tells_why_one_failed(run: Run) -> None:
    fake, torn = run("plugins").out.splitlines()[1:]
    assert fake.split() == ["fake", "0.1.0", "backend,", "source", "ready", "-"]
    assert "failed" in torn
    assert "no module named 'gone'" in torn


def test_load_sends_only_what_was_given(run: Run, daemon: FakeDaemon) -> None:
    done = run("load", "tiny", "--context", "4096", "--no-flash-attention", "--kv-type", "f32")
    assert daemon.request("load") == {
        "model": "tiny",
        "context": 4096,
        "kv_type": "f32",
        "flash_attention": False,
        "threads": None,
        "backend": None,
    }
    assert "memory    3.0 MiB (estimated 2.0 MiB)" in done.out
    assert done.err == ""


def test_load_as_json_tells_the_instance(run: Run) -> None:
    document = run("load", "tiny", "--json").json
    assert document["already_loaded"] is False
    assert document["instance"]["memory"]["measured_bytes"] == 3 * 1024**2


def test_unload_says_whether_there_was_something_to_unload(run: Run, daemon: FakeDaemon) -> None:
    assert run("unload", "tiny").out == "tiny was unloaded\n"
    daemon.instances_known = ()
    done = run("unload", "tiny")
    assert (done.exit_code, done.out) == (ExitCode.OK, "tiny was not loaded\n")


def test_unload_takes_an_instances_id_and_a_model_that_is_called_like_one(run: Run, daemon: FakeDaemon) -> None:
    assert run("unload", "i1").out == "i1 was unloaded\n"
    assert daemon.request("unload") == {"model": None, "instance": "i1"}
    unknown = run("unload", "i7")
    assert (unknown.exit_code, unknown.err.splitlines()[0]) == (ExitCode.FAILED, "enclave: i7 is not loaded")
    daemon.models_known = (replace(daemon.models_known[0], name="i7"),)
    assert run("unload", "i7").exit_code == ExitCode.OK
    assert daemon.asked[-2] == ("unload", {"model": "i7", "instance": None})
    assert not unload.is_instance("i1", exists=lambda _: True)


def test_why_is_asked_about_a_request_a_model_or_what_came_last(run: Run, daemon: FakeDaemon) -> None:
    for arguments, asked in (
        ([], {"request": None, "model": None, "limit": 40}),
        (["3f2a/7"], {"request": "3f2a/7", "model": None, "limit": 40}),
        (["tiny", "--limit", "5"], {"request": None, "model": "tiny", "limit": 5}),
    ):
        daemon.asked.clear()
        run("why", *arguments)
        assert daemon.request("why") == asked


def test_why_takes_an_existing_file_for_a_model() -> None:
    assert why.is_request("models/7", exists=lambda _: False)
    assert not why.is_request("models/7", exists=lambda _: True)
    assert not why.is_request("folder:a/b", exists=lambda _: False)


def test_why_tells_one_line_an_event_with_its_cause(daemon: FakeDaemon) -> None:
    lines = why.text(daemon.records, zone=UTC).splitlines()
    assert lines[0].split() == ["TIME", "NUMBER", "BECAUSE", "EVENT", "WHAT"]
    assert lines[1].split(maxsplit=4) == [
        "00:00:00.250",
        "#7",
        "-",
        "RequestArrived",
        "a request for tiny prompt_bytes=9 B",
    ]
    assert lines[2].split(maxsplit=4) == ["00:00:01.500", "#8", "#7", "Load", "loading tiny"]


def test_why_of_a_number_tells_what_led_to_it_and_what_it_led_to(run: Run, daemon: FakeDaemon) -> None:
    daemon.records = tuple(
        WhyRecord(number=number, at=0.0, kind="k", cause=cause)
        for number, cause in ((1, None), (2, 1), (3, 2), (4, 3), (5, 1), (6, 4))
    )
    for about in ("3", "#3"):
        daemon.asked.clear()
        done = run("why", about, "--json")
        assert [record["number"] for record in done.json["records"]] == [1, 2, 3, 4]
        assert daemon.request("why")["model"] is None
    missing = run("why", "77")
    assert (missing.exit_code, missing.out) == (ExitCode.FAILED, "")
    assert missing.err.startswith("enclave: nothing is on record about 77\nhint: ")
    assert why.event_number("3", exists=lambda _: True) is None


def test_why_tells_data_flat_and_with_units() -> None:
    data: dict[str, object] = {
        "kind": "event",
        "cause": "c6/1",
        "request": "c6/1",
        "need": {"model": "tiny", "bytes_estimated": 2048, "flash_attention": None},
        "charged_seconds": 0.0089,
        "load_only": False,
    }
    record = WhyRecord(number=1, at=0.0, kind="event LeaseReturned", data=data)
    assert why.because(record) == "c6/1"
    assert why.told(record) == ("request=c6/1 model=tiny bytes_estimated=2.0 KiB charged_seconds=9 ms load_only=False")


def test_why_tells_who_asked_before_all_else_and_no_name_reaches_the_terminal_as_it_is() -> None:
    data: dict[str, object] = {"request": "c6/1", "asker": "my-\x1b[2Jeditor (pid 4711, /usr/bin/python3)"}
    record = WhyRecord(number=1, at=0.0, kind="event RequestArrived", data=data)
    assert why.told(record).startswith("asked by my-")
    row = why.text((record,), zone=UTC).splitlines()[1]
    assert row.endswith("asked by my-\ufffd[2Jeditor (pid 4711, /usr/bin/python3) request=c6/1")


def test_why_of_a_client_or_an_instance_tells_what_names_it(run: Run, daemon: FakeDaemon) -> None:
    told: tuple[dict[str, object], ...] = (
        {"request": "c1/1", "client": "c1"},
        {"request": "c11/1", "cause": "c11/1"},
        {"cause": "c1/2", "instance": "i1"},
        {"grant": {"instance": "i1"}, "detail": "c1"},
    )
    daemon.records = tuple(
        WhyRecord(number=number, at=0.0, kind="k", data=data) for number, data in enumerate(told, start=1)
    )
    for about, numbers in (("c1", [1, 3]), ("i1", [3, 4]), ("c11", [2])):
        assert [record["number"] for record in run("why", about, "--json").json["records"]] == numbers
    assert [record["number"] for record in run("why", "c1", "--limit", "1", "--json").json["records"]] == [3]
    assert not why.is_client_or_instance("c1", exists=lambda _: True)


@pytest.mark.parametrize("about", ["c7", "i7", "c7/1", "99", "#99"])
def test_why_of_what_is_not_on_record_is_an_error(about: str, run: Run, daemon: FakeDaemon) -> None:
    daemon.records = ()
    done = run("why", about, "--json")
    assert (done.exit_code, done.json["error"]["code"]) == (ExitCode.FAILED, "not_on_record")


def test_why_asks_for_a_model_that_is_called_like_an_instance(run: Run, daemon: FakeDaemon) -> None:
    daemon.models_known = (replace(daemon.models_known[0], name="i7"),)
    assert run("why", "i7").exit_code == ExitCode.OK
    assert daemon.asked[-2] == ("why", {"request": None, "model": "i7", "limit": 40})


def test_why_names_the_day_of_what_is_not_of_today() -> None:
    noon = 12 * 3600.0
    records = [WhyRecord(number=number, at=at, kind="k") for number, at in ((1, noon - 86_400), (2, noon))]
    (heading, before, today) = why.text(records, zone=UTC, now=noon + 60).splitlines()
    assert before.startswith("1969-12-31 12:00:00.000  ")
    assert today.startswith("12:00:00.000 ")
    assert heading.index("NUMBER") == before.index("#1") - 4


def test_why_says_so_when_nothing_is_on_record(run: Run, daemon: FakeDaemon) -> None:
    daemon.records = ()
    assert run("why", "tiny").out.startswith("Nothing is on record about tiny.")


def test_serve_passes_its_options_to_the_daemons_program() -> None:
    assert serve.options(None, None) == []
    assert serve.options("a,b", "debug") == ["--only", "a,b", "--log-level", "debug"]


def test_serve_becomes_the_program() -> None:
    replaced: list[tuple[str, list[str]]] = []

    def replace(program: str, command_line: list[str]) -> NoReturn:
        replaced.append((program, command_line))
        raise SystemExit

    with pytest.raises(SystemExit):
        serve.become(["/bin/enclaved", "--only", "a"], replace, "linux")
    assert replaced == [("/bin/enclaved", ["/bin/enclaved", "--only", "a"])]


@pytest.mark.skipif(os.name != "posix", reason="needs a program that a shell runs")
def test_serve_leaves_output_and_exit_code_to_the_program(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "enclaved"
    program.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    monkeypatch.setenv("ENCLAVE_DAEMON", str(program))
    done = script.run("serve", "--log-level", "info")
    assert (done.exit_code, done.out) == (ExitCode.ALREADY_RUNNING, "--log-level info\n")


def test_serve_without_a_program_cannot_start_a_daemon(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    monkeypatch.setenv("ENCLAVE_DAEMON", str(tmp_path / "missing"))
    done = run("serve")
    assert done.exit_code == ExitCode.UNREACHABLE
    assert "hint: " in done.err


def test_status_tells_of_the_daemon_that_answers(run: Run, daemon: FakeDaemon) -> None:
    done = run("status")
    assert done.exit_code == ExitCode.OK
    facts = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert ["daemon", "running, degraded"] in facts
    assert ["up", "1 min 15 s"] in facts
    assert facts[-1] == ["problem", "plugin torn: gone"]
    assert daemon.request("connect")["start"] is False


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_daemon_that_does_not_answer_is_an_error_and_not_none(
    command: str, run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    daemon.fails_with = error_for("daemon_unavailable", "the daemon (pid 7) does not answer", hint="End it.")
    assert run(command).err == ""
    monkeypatch.setattr(discovery, "running", Mock(return_value=Endpoint("ipc:///e", 7)))
    done = run(command)
    assert (done.exit_code, done.out) == (ExitCode.UNREACHABLE, "")
    assert done.err == "enclave: the daemon (pid 7) does not answer\nhint: End it.\n"


def test_stop_waits_until_no_instance_has_a_request_at_work(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    idle = replace(READY, id="i2")

    def news() -> Iterator[EventChunk]:
        told: tuple[tuple[str, str | None, JsonMap | None], ...] = (
            ("snapshot", None, {"i1": encode(replace(READY, leases=1)), "i2": encode(idle)}),
            ("behind", None, None),
            ("snapshot", None, {"i1": encode(replace(READY, leases=2))}),
            ("added", "i3", encode(replace(READY, id="i3", leases=1))),
            ("removed", "i1", None),
            ("changed", "i3", encode(replace(READY, id="i3", state="loading", queued=1))),
            ("changed", "i3", encode(replace(READY, id="i3"))),
        )
        for number, (name, key, data) in enumerate(told):
            assert all(called != "shutdown" for called, _ in daemon.asked)
            yield EventChunk(topic="instances", name=name, number=number, at=0.0, key=key, data=data)
        raise AssertionError("nothing is at work any more")

    daemon.news = cast("Sequence[EventChunk]", news())
    done = run("stop", "--json")
    assert (done.exit_code, done.json) == (ExitCode.OK, {"stopped": True, "pid": 2**22 + 1})
    assert daemon.request("shutdown") == {"now": False}


@pytest.mark.parametrize("code", ["connection_lost", "shutting_down"])
def test_a_daemon_that_another_ends_meanwhile_has_ended_too(
    code: str, run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENCLAVE_HOME", str(tmp_path))
    daemon.answer_fails_with = error_for(code)
    done = run("stop")
    assert (done.exit_code, done.out) == (ExitCode.OK, f"The daemon (pid {2**22 + 1}) has ended.\n")


def test_what_is_waited_for_is_told_with_its_clients() -> None:
    askers = (AskerInfo(session="c1", name="me\x1b", running=1), AskerInfo(session="c2", name="idle", queued=1))
    one = replace(READY, leases=1, askers=askers)
    assert running.awaited([]) == ""
    assert running.awaited([replace(one, askers=())]) == "waiting for 1 request"
    assert running.awaited([one, one]) == "waiting for 2 requests of me\ufffd"
    assert running.awaited([replace(one, queued=1)] * 2, queued=True) == "waiting for 3 requests of me\ufffd, idle"


def test_folder_tells_what_each_holds_and_how_changes_are_noticed(run: Run) -> None:
    mine, theirs = run("folder").out.splitlines()[1:]
    assert mine.split() == ["/models", "2", "folder", "enclave", "folder", "add", "told", "by", "the", "system"]
    assert "it is on a network (nfs)" in theirs
    assert run("folder", "list").out == run("folder").out


def test_without_folders_folder_says_how_to_add_one(run: Run, daemon: FakeDaemon) -> None:
    daemon.folders_known = ()
    assert "enclave folder add PATH" in run("folder").out


def test_a_folder_is_added_and_removed_by_its_whole_path(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("folder", "add", "a/../b").out.startswith(f"{tmp_path}/b: 3 models")
    assert daemon.request("add_folder") == {"path": f"{tmp_path}/b"}
    assert "the files in it stay" in run("folder", "remove", ".").out
    assert daemon.request("remove_folder") == {"path": str(tmp_path)}
