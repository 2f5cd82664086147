"""Dataclasses from maps of unknown origin, by their type hints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.protocol import METHODS, LocalProtocolError, RemoteProtocolError, Request, check_request, read_params
from enclave.protocol.bodies import GenerateParams, ModelInfo, Sampling
from enclave.protocol.codec import Bounds, decode, elsewhere, encode, field_names
from enclave.protocol.packing import pack


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Bounds(1, 10)]


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    flag: bool = False
    ratio: float | None = None
    colour: Colour = Colour.RED
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] | None = None
    prompt: str | tuple[int, ...] | None = None
    data: bytes = b""
    anything: object = None
    short: Annotated[str, Bounds(0, 3)] = ""
    body: bytes = elsewhere(b"")


FULL = Outer(
    name="n",
    flag=True,
    ratio=0.5,
    kind="b",
    inner=Inner(size=2),
    many=(Inner(size=1), Inner(size=10)),
    by_name={"x": Inner(size=3)},
    prompt=(1, 2),
    data=b"\0",
    anything={"a": [1, None]},
    short="abc",
)


@pytest.mark.parametrize("value", [FULL, Outer(name=""), Outer(name="x", prompt="text")])
def test_what_was_encoded_is_decoded_to_the_same(value: Outer) -> None:
    assert decode(Outer, encode(value)) == value


def test_fields_with_their_default_or_none_do_not_travel() -> None:
    assert encode(Outer(name="x")) == {"name": "x"}
    assert encode(Outer(name="x", flag=False, ratio=0.0)) == {"name": "x", "ratio": 0.0}


def test_a_field_of_another_frame_neither_travels_nor_can_be_set_by_the_map() -> None:
    assert "body" not in field_names(Outer)
    assert "body" not in encode(Outer(name="x", body=b"secret"))
    assert decode(Outer, {"name": "x", "body": b"forged"}).body == b""


def test_unknown_fields_are_ignored_and_none_is_missing() -> None:
    assert decode(Outer, {"name": "x", "new": 1, "flag": None}) == Outer(name="x")


def test_an_integer_is_taken_for_a_float_and_becomes_one() -> None:
    ratio = decode(Outer, {"name": "x", "ratio": 1}).ratio
    assert isinstance(ratio, float)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": b"x"}, "name"),
        ({"name": None}, "name"),
        ({"name": "x", "flag": 1}, "flag"),
        ({"name": "x", "ratio": True}, "ratio"),
        ({"name": "x", "ratio": float("nan")}, "ratio"),
        ({"name": "x", "ratio": 10**400}, "ratio"),
        ({"name": "x", "anything": {"a": [{"b": float("inf")}]}}, "anything"),
        ({"name": "x", "colour": "blue"}, "colour"),
        ({"name": "x", "colour": ["red"]}, "colour"),
        ({"name": "x", "kind": "c"}, "kind"),
        ({"name": "x", "inner": 5}, "inner"),
        ({"name": "x", "inner": {}}, "inner.size"),
        ({"name": "x", "inner": {"size": 11}}, "inner.size"),
        ({"name": "x", "many": {}}, "many"),
        ({"name": "x", "many": [{"size": 1}, {"size": 0}]}, "many[1].size"),
        ({"name": "x", "by_name": {"k": {"size": "1"}}}, "by_name.k.size"),
        ({"name": "x", "prompt": [1, "2"]}, "prompt[1]"),
        ({"name": "x", "prompt": 1.5}, "prompt"),
        ({"name": "x", "data": "text"}, "data"),
        ({"name": "x", "short": "abcd"}, "short"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(Outer, values)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


def test_what_cannot_be_sent_is_a_local_error() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Outer(name="x", anything={1: 2}))
    with pytest.raises(LocalProtocolError):
        encode(Outer(name="x", anything={1, 2}))
    with pytest.raises(LocalProtocolError):
        pack(2**64)


# --- the methods ---


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_every_type_of_a_method_has_a_wire_form(row: Any) -> None:
    for kind in (row.params, row.result, row.chunk):
        if kind is not None:
            with pytest.raises(RemoteProtocolError):
                decode(kind, [])
            all_wrong = {field.name: object() for field in fields(kind)}
            if all_wrong and kind.__name__ != "ConfigParams":
                with pytest.raises(RemoteProtocolError):
                    decode(kind, all_wrong)


def test_a_method_that_is_not_known_or_not_built_is_refused_with_the_requests_id() -> None:
    unbuilt = next(name for name, row in METHODS.items() if not row.built)
    for method, code in (("no.such", "unknown_method"), (unbuilt, "unsupported")):
        with pytest.raises(RemoteProtocolError) as caught:
            check_request(Request(id=7, method=method))
        assert (caught.value.code, caught.value.request_id, caught.value.fatal) == (code, 7, False)


def test_bad_parameters_are_refused_with_the_requests_id_and_the_field() -> None:
    for body, field in ((b"", "prompt"), (pack({"prompt": "x", "temperature": "hot"}), "temperature"), (b"\xc1", None)):
        with pytest.raises(RemoteProtocolError) as caught:
            read_params(Request(id=7, method="generate", model="m", body=body))
        assert (caught.value.code, caught.value.field) == ("bad_request", field)
        assert (caught.value.request_id, caught.value.fatal) == (7, False)


def test_generates_parameters_hold_what_sampling_holds() -> None:
    assert set(field_names(Sampling)) < set(field_names(GenerateParams))
    assert decode(ModelInfo, {"name": "a", "source": "b", "size": 2**40}).size == 2**40


# --- totality ---

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(field_names(Outer)), PLAIN))
def test_any_map_gives_an_object_or_the_remote_error(values: dict[str, object]) -> None:
    try:
        value = decode(Outer, values)
    except RemoteProtocolError:
        return
    assert decode(Outer, encode(value)) == value
