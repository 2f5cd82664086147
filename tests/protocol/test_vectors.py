"""The vectors for clients in other languages, checked both ways: they are what this code reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from enclave.protocol import Limits, RemoteProtocolError, Request, Role, Session, State, check_request, read_params
from enclave.protocol.codec import encode
from enclave.protocol.messages import CLIENT_MESSAGES, DAEMON_MESSAGES, MESSAGE_TYPES, parse, read_raw, to_frames
from enclave.protocol.packing import BODY_LIMITS, iterate

FOLDER = Path(__file__).parent / "vectors"
MESSAGES: list[dict[str, Any]] = json.loads((FOLDER / "messages.json").read_text(encoding="utf-8"))
SESSION: list[dict[str, Any]] = json.loads((FOLDER / "session.json").read_text(encoding="utf-8"))
REFUSED: list[dict[str, Any]] = json.loads((FOLDER / "refused.json").read_text(encoding="utf-8"))


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in vector["frames"]]


def as_json(value: object) -> object:
    """Plain values as the vectors write them: bytes as {"hex": …}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in cast("list[object]", value)]
    return value


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda vector: vector["name"])
def test_a_message_is_read_as_the_vector_says_and_written_to_the_same_bytes(vector: dict[str, Any]) -> None:
    frames = frames_of(vector)
    message = parse(read_raw(frames), Limits())
    assert as_json({"type": message.TYPE, **encode(message)}) == vector["header"]
    assert isinstance(message, CLIENT_MESSAGES if vector["from"] == "client" else DAEMON_MESSAGES)
    if "body" in vector:
        assert as_json(list(iterate(frames[1], BODY_LIMITS))) == vector["body"]
    if isinstance(message, Request):
        assert is_known(message)
        read_params(message)
    assert to_frames(message, Limits()) == frames


def is_known(request: Request) -> bool:
    try:
        check_request(request)
    except RemoteProtocolError as error:
        return error.code == "unsupported"
    return True


@pytest.mark.parametrize("vector", REFUSED, ids=lambda vector: vector["name"])
def test_a_message_is_refused_with_the_code_and_field_of_the_vector(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(read_raw(frames_of(vector)), Limits())
    assert (caught.value.code, caught.value.field) == (vector["code"], vector["field"])


def test_every_message_type_has_a_vector() -> None:
    assert {vector["header"]["type"] for vector in MESSAGES} == set(MESSAGE_TYPES)


def test_the_session_in_full_is_what_both_sides_say_and_understand() -> None:
    """Each step's bytes are taken by the other side, and are those that this code writes for the same message."""
    client, daemon = Session(Role.CLIENT), Session(Role.DAEMON)
    for step in SESSION:
        sender, receiver = (client, daemon) if step["from"] == "client" else (daemon, client)
        frames = frames_of(step)
        (message,) = receiver.receive(frames)
        assert as_json({"type": message.TYPE, **encode(message)}) == step["header"]
        if "body" in step:
            assert as_json(list(iterate(frames[1], BODY_LIMITS))) == step["body"]
        assert sender.send(message) == frames
    assert client.state is daemon.state is State.CLOSED
    assert {step["header"]["type"] for step in SESSION} == set(MESSAGE_TYPES)


def test_the_page_shows_the_session_as_the_vector_has_it() -> None:
    page = (FOLDER.parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert session_as_text(SESSION) in page


def session_as_text(steps: list[dict[str, Any]]) -> str:
    """One block for each step: who says what and why, then the frames in hex, wrapped."""
    blocks: list[str] = []
    for step in steps:
        arrow = "client → daemon" if step["from"] == "client" else "daemon → client"
        note = f"  {step['note']}" if step["note"] else ""
        lines = [f"{arrow}  {step['header']['type']}{note}"]
        for number, frame in enumerate(step["frames"]):
            name = "header" if number == 0 else "body"
            wrapped = [frame[start : start + 100] for start in range(0, len(frame), 100)] or ["(empty)"]
            lines += [f"  {name if row == 0 else '':<7} {part}" for row, part in enumerate(wrapped)]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
