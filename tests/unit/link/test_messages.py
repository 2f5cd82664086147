"""Each message comes back as it was sent; anything else raises LinkError and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enclaved.link import messages
from enclaved.link.framing import Framer, LinkError
from enclaved.link.messages import Message, decode_from_child, decode_to_child, descriptors_of, encode

packb = cast("Callable[[object], bytes]", cast("Any", msgpack).packb)

INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXTS,
    "str | None": st.none() | TEXTS,
    "int": INTEGERS,
    "int | None": st.none() | INTEGERS,
    "float": st.floats(allow_nan=False) | INTEGERS,
    "bool": st.booleans(),
    "bytes": st.binary(max_size=50),
    "dict[str, Any]": st.dictionaries(TEXTS, PLAIN, max_size=4),
    "list[str]": st.lists(TEXTS, max_size=4),
    "list[dict[str, Any]]": st.lists(st.dictionaries(TEXTS, PLAIN, max_size=3), max_size=3),
    "list[list[str | int]]": st.lists(st.lists(TEXTS | INTEGERS, max_size=3), max_size=3),
    "list[list[str | bytes]]": st.lists(
        st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=20)).map(list), max_size=3
    ),
    "list[list[str | int | bytes]]": st.lists(st.tuples(TEXTS, INTEGERS, st.binary(max_size=20)).map(list), max_size=3),
}


def _kinds(either: object) -> list[type[Any]]:
    return [kind for kind in cast("tuple[type[Any], ...]", cast("Any", either).__args__) if is_dataclass(kind)]


TO_CHILD, FROM_CHILD = _kinds(messages.ToChild), _kinds(messages.FromChild)


def _any_of(kinds: list[type[Any]]) -> st.SearchStrategy[Any]:
    return st.one_of(
        *[st.builds(kind, *[BY_ANNOTATION[cast("str", slot.type)] for slot in fields(kind)]) for kind in kinds]
    )


def _payload(message: Message) -> bytes:
    (payload,) = Framer().feed(encode(message))
    return payload


def _name_and_fields(kind: type[Any]) -> list[Any]:
    """A valid array for a message of this kind."""
    samples: dict[str, Any] = {
        "str": "x",
        "str | None": None,
        "int": 1,
        "int | None": None,
        "float": 0.5,
        "bool": True,
        "bytes": b"x",
        "dict[str, Any]": {},
        "list[str]": [],
        "list[dict[str, Any]]": [],
        "list[list[str | int]]": [],
        "list[list[str | int | bytes]]": [],
        "list[list[str | bytes]]": [],
    }
    return [kind.__name__, *[samples[cast("str", slot.type)] for slot in fields(kind)]]


def _decoder(kind: type[Any]) -> Any:
    return decode_to_child if kind in TO_CHILD else decode_from_child


@given(_any_of(TO_CHILD))
def test_what_goes_to_a_child_arrives_as_it_was_sent(message: Any) -> None:
    assert decode_to_child(_payload(message)) == message


@given(_any_of(FROM_CHILD))
def test_what_comes_from_a_child_arrives_as_it_was_sent(message: Any) -> None:
    assert decode_from_child(_payload(message)) == message


def test_every_annotation_of_a_message_has_a_check() -> None:
    checks = cast("dict[str, Any]", vars(messages)["_CHECKS"])
    used = {cast("str", slot.type) for kind in TO_CHILD + FROM_CHILD for slot in fields(kind)}
    assert used == set(checks)


def test_only_loads_and_headers_carry_descriptors() -> None:
    load = messages.Load("m", "e", [["weights", "a", 1], ["shard", "b", 2]], {}, {}, {})
    assert descriptors_of(load) == 2
    assert descriptors_of(messages.ReadHeader(1, "m:f")) == 1
    assert descriptors_of(messages.Cancel("r")) == 0


@pytest.mark.parametrize("kind", TO_CHILD + FROM_CHILD)
def test_one_field_more_or_less_is_refused(kind: type[Any]) -> None:
    values = _name_and_fields(kind)
    assert isinstance(_decoder(kind)(packb(values)), kind)
    for wrong in (values[:-1], [*values, None]):
        with pytest.raises(LinkError):
            _decoder(kind)(packb(wrong))


@pytest.mark.parametrize("kind", TO_CHILD + FROM_CHILD)
def test_a_field_of_another_type_is_refused(kind: type[Any]) -> None:
    values = _name_and_fields(kind)
    for place in range(1, len(values)):
        wrong = list(values)
        wrong[place] = [[[]]]
        with pytest.raises(LinkError):
            _decoder(kind)(packb(wrong))


@pytest.mark.parametrize("wrong", [True, 1.5, "1", None])
def test_a_bool_or_a_float_is_no_integer(wrong: object) -> None:
    with pytest.raises(LinkError):
        decode_from_child(packb(["Pong", wrong]))


@pytest.mark.parametrize("kind", TO_CHILD)
def test_a_child_cannot_say_what_only_the_daemon_says(kind: type[Any]) -> None:
    with pytest.raises(LinkError):
        decode_from_child(packb(_name_and_fields(kind)))


@pytest.mark.parametrize("kind", FROM_CHILD)
def test_the_daemon_does_not_say_what_only_a_child_says(kind: type[Any]) -> None:
    with pytest.raises(LinkError):
        decode_to_child(packb(_name_and_fields(kind)))


TIMESTAMP = b"\xd6\xff\x00\x00\x00\x01"
EXTENSION = b"\xc7\x02\x05ab"


AROUND: list[Callable[[bytes], bytes]] = [
    lambda extension: extension,
    lambda extension: b"\x91" + extension,
    lambda extension: b"\x92" + packb("Pong") + extension,
    # Deep inside a map, where the check of a field's type does not look.
    lambda extension: b"\x93" + packb("HeaderRead") + b"\x01\x81" + packb("a") + b"\x91" + extension,
]


@pytest.mark.parametrize("extension", [TIMESTAMP, EXTENSION])
@pytest.mark.parametrize("around", AROUND)
def test_extension_types_are_refused_wherever_they_stand(extension: bytes, around: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LinkError):
        decode_from_child(around(extension))


@pytest.mark.parametrize("depth", [40, 900, 5_000, 200_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    nested = b"\x91" * depth + b"\xc0"
    for payload in (nested, b"\x91" + nested, b"\x93" + packb("HeaderRead") + b"\x01\x81" + packb("a") + nested):
        with pytest.raises(LinkError):
            decode_from_child(payload)


@pytest.mark.parametrize("key", [1, b"a", None, True])
def test_a_map_with_other_keys_than_texts_is_refused(key: object) -> None:
    for header in ({key: 1}, {"a": {key: 1}}, {"a": [{key: 1}]}):
        with pytest.raises(LinkError):
            decode_from_child(packb(["HeaderRead", 1, header]))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"\x91\xc0",
        packb("Pong"),
        packb({"Pong": 1}),
        packb(["Nothing", 1]),
        packb(["Pong", 1]) + b"\x00",
        packb(["Pong", 1])[:-1],
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x92\xa4Pong\xa1\xff",
    ],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(LinkError):
        decode_from_child(payload)


@given(st.binary(max_size=200))
@example(struct.pack("<I", 0))
def test_any_bytes_are_a_message_or_a_link_error(payload: bytes) -> None:
    for decode in (decode_from_child, decode_to_child):
        try:
            message = decode(payload)
        except LinkError:
            continue
        assert is_dataclass(message)


@given(PLAIN, st.sampled_from(TO_CHILD + FROM_CHILD), st.lists(PLAIN, max_size=8))
def test_any_values_are_a_message_or_a_link_error(value: object, kind: type[Any], rest: list[object]) -> None:
    for payload in (packb(value), packb([kind.__name__, *rest])):
        try:
            _decoder(kind)(payload)
        except LinkError:
            continue


@given(_any_of(FROM_CHILD), st.integers(0, 10_000), st.integers(0, 255))
def test_a_message_with_one_byte_changed_is_a_message_or_a_link_error(message: Any, place: int, byte: int) -> None:
    payload = bytearray(_payload(message))
    payload[place % len(payload)] = byte
    try:
        decode_from_child(bytes(payload))
    except LinkError:
        return


def test_what_cannot_be_written_raises_a_link_error() -> None:
    for message in (messages.Warm("\ud800"), messages.Pong(2**65), messages.Hello(1, 1, {"walls": object()})):
        with pytest.raises(LinkError):
            encode(message)


MESSAGES_OF_A_STEP = st.lists(
    st.one_of(
        st.builds(messages.Chunk, TEXTS, st.integers(1, 5), st.binary(max_size=5)),
        st.builds(messages.Prompted, TEXTS, st.integers(0, 9), st.integers(0, 9)),
    ),
    max_size=12,
)


@given(MESSAGES_OF_A_STEP)
def test_joining_chunks_changes_neither_what_is_said_nor_the_order(said: list[Any]) -> None:
    apart: list[Any] = []
    for message in messages.joined(said):
        decoded = decode_from_child(_payload(message))
        items = decoded.items if isinstance(decoded, messages.Chunks) else []
        apart += [messages.Chunk(*item) for item in cast("list[Any]", items)] or [decoded]
    assert apart == said


def test_a_row_of_chunks_is_one_message() -> None:
    chunk = messages.Chunk("r", 1, b"x")
    end = messages.Prompted("r", 1, 2)
    row = messages.Chunks([["r", 1, b"x"], ["r", 1, b"x"]])
    assert messages.joined([chunk, chunk, end, chunk]) == [row, end, chunk]


@pytest.mark.parametrize("item", [[], ["r", 1], ["r", 1, b"x", 2], [1, 1, b"x"], ["r", True, b"x"], ["r", 1, "x"], "r"])
def test_an_item_that_is_no_chunk_is_refused(item: object) -> None:
    with pytest.raises(LinkError):
        decode_from_child(packb(["Chunks", [["r", 1, b"x"], item]]))
