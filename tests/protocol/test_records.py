"""Records are dataclasses to whoever asks, and are looked at only when they are used."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from enclave.protocol.records import record


@record
class Base:
    """A record."""

    KIND: ClassVar[str] = "base"
    name: str
    size: int = 1
    """In bytes."""
    tags: list[str] = dataclasses.field(default_factory=list[str])
    secret: bytes = dataclasses.field(default=b"", repr=False)


@record
class Derived(Base):
    """One more field, and another default."""

    size: int = 2
    more: float | None = None


def test_a_record_has_its_fields_its_defaults_and_those_of_its_base() -> None:
    value = Derived(name="x", more=0.5)
    assert (value.name, value.size, value.tags, value.more, value.KIND) == ("x", 2, [], 0.5, "base")
    assert [field.name for field in dataclasses.fields(Derived)] == ["name", "size", "tags", "secret", "more"]
    assert Base(name="x").size == 1


def test_no_two_share_what_a_factory_makes() -> None:
    first, second = Base(name="a"), Base(name="b")
    assert first.tags is not second.tags
    given = ["t"]
    assert Base(name="c", tags=given).tags is given


def test_it_is_a_dataclass_to_the_standard_library() -> None:
    value = Derived(name="x")
    assert dataclasses.is_dataclass(Derived)
    assert dataclasses.replace(value, size=7) == Derived(name="x", size=7)
    assert dataclasses.asdict(value) == {"name": "x", "size": 2, "tags": [], "secret": b"", "more": None}
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301


def test_it_cannot_be_changed() -> None:
    value: Any = Base(name="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.name = "y"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.name


def test_it_equals_its_like_and_nothing_else() -> None:
    assert Base(name="x") == Base(name="x")
    assert Base(name="x") != Base(name="y")
    assert Base(name="x", size=2) != Derived(name="x")
    assert Base(name="x") != "x"


def test_it_can_be_hashed_where_its_fields_can() -> None:
    assert hash(Base(name="x", tags=())) == hash(Base(name="x", tags=()))  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(TypeError):
        hash(Base(name="x"))


@pytest.mark.parametrize(
    ("values", "word"), [({}, "name"), ({"name": "x", "nam": "y"}, "nam"), ({"nam": "x"}, "nam"), ({"size": 1}, "name")]
)
def test_a_wrong_argument_is_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises(TypeError, match=f"'{word}'"):
        Base(**values)


def test_its_repr_tells_all_but_what_is_hidden() -> None:
    assert repr(Base(name="x", secret=b"s")) == "Base(name='x', size=1, tags=[])"


def test_importing_the_protocol_looks_at_none() -> None:
    code = (
        "import enclave.protocol as p\n"
        "from enclave.protocol.messages import MESSAGE_TYPES\n"
        "from enclave.protocol.records import _PLAN\n"
        "rows = [p.METHODS[name].params for name in p.METHODS] + list(MESSAGE_TYPES.values())\n"
        "print(sum(vars(kind)[_PLAN] is not None for kind in rows), len(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen, known = map(int, done.stdout.split())
    assert known > 40
    assert seen <= 3  # those that are a field's default in another
