"""`enclave events`: what a person reads of each event, what a program gets, and how it ends."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.exceptions import error_for
from enclave.protocol.bodies import EVENT_TOPICS, AskerInfo, EventChunk, InstanceInfo, JsonMap, MemoryInfo, ModelInfo
from enclave.protocol.codec import encode
from enclave_cli.changes import Changes
from enclave_cli.commands import events
from enclave_cli.errors import ExitCode

if TYPE_CHECKING:
    from .conftest import Run, Script
    from .fake_daemon import FakeDaemon

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")

LOADING = InstanceInfo(
    id="i1",
    model="tiny",
    state="loading",
    wanted="loaded",
    backend="fake",
    device="cpu",
    queued=1,
    askers=(AskerInfo(session="c1", name="my-editor", queued=1),),
)
READY = InstanceInfo(
    id="i1",
    model="tiny",
    state="ready",
    wanted="loaded",
    backend="fake",
    device="cpu",
    memory=MemoryInfo(measured_bytes=2**20),
    leases=1,
    askers=(AskerInfo(session="c1", name="my-editor", running=1),),
)

IS_READY = "state ready, backend fake, device cpu, memory 1.0 MiB, running 1, clients my-editor (1)"


def _event(name: str, data: JsonMap | None, topic: str = "instances", key: str | None = "i1") -> EventChunk:
    return EventChunk(topic=topic, name=name, number=1, at=0.25, key=key, data=data)


def _told(*news: EventChunk, changes: Changes | None = None) -> list[str]:
    changes = changes or Changes(zone=UTC)
    lines = [line for event in news for line in changes.lines(event)]
    assert all(line.startswith("00:00:00.250  ") for line in lines)
    return [" ".join(line.split()[1:]) for line in lines]


def test_the_topics_are_those_of_the_protocol() -> None:
    assert events.TOPICS == EVENT_TOPICS


def test_of_a_change_only_what_is_different_is_told() -> None:
    assert _told(
        _event("snapshot", {}, key=None),
        _event("added", encode(LOADING)),
        _event("changed", encode(READY)),
        _event("removed", encode(READY)),
    ) == [
        "instances snapshot - nothing",
        "instances added i1 tiny: state loading, backend fake, device cpu, queued 1, clients my-editor (1)",
        "instances changed i1 tiny: state loading → ready, memory - → 1.0 MiB, running 0 → 1, queued 1 → 0",
        "instances removed i1 tiny",
    ]


def test_a_snapshot_is_a_line_for_each_thing_and_replaces_what_was_known() -> None:
    other = encode(READY) | {"id": "i2", "model": "other"}
    assert _told(
        _event("snapshot", {"i1": encode(LOADING), "i2": other}, key=None),
        _event("behind", None, key=None),
        _event("snapshot", {"i2": other}, key=None),
        _event("changed", other | {"leases": 0}, key="i2"),
        _event("changed", encode(READY)),
    ) == [
        "instances snapshot i1 tiny: state loading, backend fake, device cpu, queued 1, clients my-editor (1)",
        f"instances snapshot i2 other: {IS_READY}",
        "instances behind - what came meanwhile is left out; all of it follows",
        f"instances snapshot i2 other: {IS_READY}",
        "instances changed i2 other: running 1 → 0",
        f"instances changed i1 tiny: {IS_READY}",
    ]


def test_a_change_of_what_is_not_told_otherwise_is_told_as_it_is() -> None:
    moved = encode(READY) | {"pid": 4711}
    assert _told(_event("added", encode(READY)), _event("changed", moved))[-1] == (
        "instances changed i1 tiny: pid - → 4711"
    )
    strange = moved | {"state": 7, "askers": [{"name": "my-editor"}, {"session": 7}]}
    assert _told(_event("added", moved), _event("changed", strange))[-1] == (
        "instances changed i1 tiny: state ready → 7, askers my-editor → my-editor, {'session': 7}"
    )


def test_models_and_hardware_are_told_with_units() -> None:
    model = encode(ModelInfo(name="tiny", source="builtin", size=2**20, backends=("fake",), default=True))
    device: JsonMap = {"capacity_bytes": 2**30, "booked_bytes": 0, "cores": 2}
    assert _told(
        _event("snapshot", {"tiny": model}, "models", None),
        _event("changed", model | {"aliases": ["small"]}, "models", "tiny"),
        _event("snapshot", {"cpu": device}, "hardware", None),
        _event("changed", device | {"booked_bytes": 2**20, "threads_granted": 2}, "hardware", "cpu"),
    ) == [
        "models snapshot tiny source builtin, size 1.0 MiB, backends fake, default yes",
        "models changed tiny aliases - → small",
        "hardware snapshot cpu capacity 1.0 GiB, booked 0 B, cores 2",
        "hardware changed cpu booked 0 B → 1.0 MiB, threads granted - → 2",
    ]


def test_what_a_newer_daemon_tells_otherwise_is_told_as_it_is() -> None:
    strange: JsonMap = {"state": 7, "weather": {"rain_seconds": 75.0}}
    assert _told(_event("added", strange), _event("added", {"colour": "red"}, "moods", "m1")) == [
        "instances added i1 state 7, rain seconds 1 min 15 s",
        "moods added m1 colour red",
    ]


def test_no_name_reaches_the_terminal_as_it_is() -> None:
    event = _event("added", {"a\x1b": "\x1b[2J\n", "model": "\x1b]0;"}, "instances", "i\x1b")
    (line,) = Changes(zone=UTC).lines(event)
    assert "\x1b" not in line
    assert "\n" not in line


def test_on_a_terminal_a_long_path_loses_its_middle() -> None:
    loading = encode(LOADING) | {"model": "/home/someone/" + "deep/" * 100 + "model.gguf"}
    (short,) = Changes(terminal=True).lines(_event("added", loading))
    assert "…/model.gguf: state loading" in short
    (whole,) = Changes().lines(_event("added", loading))
    assert "deep/" * 100 in whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
THINGS = st.dictionaries(st.sampled_from(["id", "model", "state", "memory", "size", "x"]), VALUES, max_size=4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["models", "instances", "else"]),
            st.sampled_from(["snapshot", "added", "changed", "removed", "behind", "new"]),
            st.none() | st.sampled_from(["k1", "k2"]),
            st.none() | THINGS,
        ),
        max_size=8,
    )
)
def test_whatever_an_event_holds_it_has_its_lines(
    told: list[tuple[str, str, str | None, dict[str, object] | None]],
) -> None:
    changes = Changes()
    for topic, name, key, data in told:
        for line in changes.lines(_event(name, data, topic, key)):
            assert len(line.splitlines()) == 1


def test_events_asks_for_the_topics_that_are_named(run: Run, daemon: FakeDaemon) -> None:
    for arguments, topics in (([], ()), (["instances", "hardware"], ("instances", "hardware"))):
        daemon.asked.clear()
        run("events", *arguments)
        assert daemon.request("events") == {"topics": topics}


def test_events_prints_a_heading_and_a_line_for_each(run: Run, daemon: FakeDaemon) -> None:
    heading, ready, downloads = run("events").out.splitlines()
    assert heading.split() == ["TIME", "TOPIC", "EVENT", "KEY", "WHAT"]
    assert ready.split()[1:4] == ["instances", "snapshot", "i1"]
    assert downloads.split()[1:] == ["downloads", "snapshot", "-", "nothing"]
    assert [line.index("snapshot") for line in (ready, downloads)] == [heading.index("EVENT")] * 2


def test_events_as_json_lines_have_every_field(run: Run, daemon: FakeDaemon) -> None:
    daemon.news = (_event("removed", {"id": "i1"}),)
    assert run("events", "--json").json_lines == [
        {
            "type": "event",
            "topic": "instances",
            "name": "removed",
            "number": 1,
            "at": 0.25,
            "key": "i1",
            "data": {"id": "i1"},
        }
    ]


def test_a_snapshot_ends_when_every_topic_has_told_its_own(script: Script) -> None:
    # The fake daemon would hang after its two snapshots.
    done = script.run("events", "--snapshot", "downloads", "instances", hangs=True)
    assert (done.exit_code, done.err) == (ExitCode.OK, "")
    assert [line.split()[1] for line in done.out.splitlines()] == ["TOPIC", "instances", "downloads"]
    document = script.run("events", "--snapshot", "--json", "downloads", "instances", hangs=True).json
    assert document["downloads"] == {}
    assert document["instances"]["i1"]["model"] == "tiny"


def test_a_snapshot_is_asked_for_by_the_topics_that_are_known(run: Run, daemon: FakeDaemon) -> None:
    run("events", "--snapshot")
    assert daemon.request("events") == {"topics": EVENT_TOPICS}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("shutting_down", ExitCode.UNREACHABLE),
        ("connection_lost", ExitCode.UNREACHABLE),
        ("unsupported", ExitCode.FAILED),
    ],
)
def test_a_daemon_that_goes_is_told_and_decides_the_exit_code(
    code: str, exit_code: ExitCode, run: Run, daemon: FakeDaemon
) -> None:
    daemon.answer_fails_with = error_for(code, "it went", hint="see")
    done = run("events")
    assert (done.exit_code, done.err) == (exit_code, "enclave: it went\nhint: see\n")
    last = run("events", "--json").json_lines[-1]
    assert (last["type"], last["error"]["code"]) == ("error", code)


@posix_only
def test_ctrl_c_ends_events_quietly(script: Script) -> None:
    with script.running("events", hangs=True) as (process, reports):
        assert reports.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (ExitCode.INTERRUPTED, b"")
    assert len(out.splitlines()) == 3


@posix_only
def test_ctrl_c_among_json_lines_is_a_line(script: Script) -> None:
    with script.running("events", "--json", hangs=True) as (process, reports):
        assert reports.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["error"]["code"]) == (ExitCode.INTERRUPTED, "cancelled")


@posix_only
def test_a_reader_that_has_enough_of_events_is_no_error(script: Script) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with script.running("events", stdout=writing, hangs=True) as (process, _):
        os.close(writing)
        _, err = process.communicate()
    assert (process.returncode, err) == (ExitCode.OK, b"")
