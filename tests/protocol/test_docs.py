"""docs/protocol.md says what the code does: its tables are compared with the code's, row by row."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from enclave.protocol import packing
from enclave.protocol.bodies import Empty
from enclave.protocol.codec import ELSEWHERE, Bounds
from enclave.protocol.errors import CLIENT_SIDE_CODES, ERROR_CODES
from enclave.protocol.messages import MESSAGE_TYPES, PROTOCOL_VERSION, AttachmentInfo, Limits
from enclave.protocol.methods import METHODS, Method
from enclave.protocol.session import TRANSITIONS, Role, State

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
SCALARS = {int: "integer", float: "number", str: "text", bytes: "bytes", bool: "boolean", object: "anything"}
HEAD = ["| field | type | meaning |", "|---|---|---|"]


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


# --- what the tables should be, from the code ---


def amount(value: float) -> str:
    for power in (31, 53, 64):
        if value == 2**power - 1:
            return f"2^{power} − 1"
    return f"{value:,.0f}"


def range_text(bounds: Bounds) -> str:
    if bounds.maximum is None:
        return f"from {amount(bounds.minimum or 0)}"
    if bounds.minimum == bounds.maximum:
        return amount(bounds.maximum)
    return f"{amount(bounds.minimum or 0)} to {amount(bounds.maximum)}"


def type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [range_text(bound) for bound in arguments[1:] if isinstance(bound, Bounds)]
        inner = type_text(arguments[0])
        if inner in ("integer", "number"):
            return f"{inner} {', '.join(bounds)}"
        return f"{inner} (length {', '.join(bounds)})"
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(member) for member in arguments if member is not types.NoneType)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"array of {type_text(arguments[0])}"
    if origin is dict:
        return f"map to {type_text(arguments[1])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.value}`" for member in hint)
    if hint not in SCALARS:
        name: str = hint.__name__
        return f"[{name}](#{name.lower()})"
    return SCALARS[hint]


def meanings(kind: type) -> dict[str, str]:
    """The sentence below each field in the source, its own and those of the classes it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = ""
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def field_rows(kind: Any) -> list[str]:
    said, hints = meanings(kind), typing.get_type_hints(kind, include_extras=True)
    rows: list[str] = []
    for field in dataclasses.fields(kind):
        if field.metadata.get(ELSEWHERE):
            continue
        needed = field.default is field.default_factory is dataclasses.MISSING and types.NoneType not in get_args(
            hints[field.name]
        )
        name = f"**`{field.name}`**" if needed else f"`{field.name}`"
        default = "" if needed or field.default in (None, (), "", b"", dataclasses.MISSING) else default_text(field)
        rows.append(f"| {name} | {type_text(hints[field.name])}{default} | {said[field.name]} |")
    return rows


def default_text(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if dataclasses.is_dataclass(value):
        return ""
    plain = value.value if isinstance(value, Enum) else value
    if isinstance(plain, bool):
        return f", default {str(plain).lower()}"
    return (
        f", default {plain:,}"
        if isinstance(plain, int)
        else f", default {plain:g}"
        if isinstance(plain, float)
        else f", default {plain}"
    )


def used_types() -> dict[str, type]:
    """Every dataclass in a body or inside a header, by name: the page's chapter of types."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        for argument in get_args(hint):
            visit(argument)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint.__name__ not in found:
            found[hint.__name__] = hint
            for inner in typing.get_type_hints(hint, include_extras=True).values():
                visit(inner)

    for row in METHODS.values():
        for kind in (row.params, row.result, row.chunk):
            if kind not in (None, Empty):
                visit(kind)
    return {AttachmentInfo.__name__: AttachmentInfo, Limits.__name__: Limits, **found}


def state_rows() -> list[str]:
    rows: list[str] = []
    for state in State:
        for role in Role:
            steps = [
                f"{step.value}" + (f" → {target.value}" if target is not state else "")
                for (sender, step), target in TRANSITIONS[state].items()
                if sender is role
            ]
            rows.append(f"| {state.value} | {role.value} | {', '.join(steps) or '—'} |")
    return rows


def linked(kind: type[Any] | None) -> str:
    return "—" if kind in (None, Empty) else f"[{kind.__name__}](#{kind.__name__.lower()})"


def method_row(row: Method) -> str:
    parts = (
        linked(row.params),
        linked(row.chunk),
        linked(row.result),
        row.answered_by.value,
        row.right.value,
        "yes" if row.repeatable else "no",
        "yes" if row.built else "not yet",
    )
    return f"| `{row.name}` | {' | '.join(parts)} |"


def code_row(code: str) -> str:
    row = ERROR_CODES[code]
    return f"| `{code}` | {'yes' if row.retryable else 'no'} | {row.fault.value} | {row.meaning} | {row.hint} |"


# --- the comparisons ---


def section(page: str, heading: str) -> str:
    """From a heading to the next of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def kinds() -> list[Any]:
    return [
        *(pytest.param(f"### `{name}`", kind, id=name) for name, kind in MESSAGE_TYPES.items()),
        *(pytest.param(f"### {name}", kind, id=name) for name, kind in used_types().items()),
    ]


@pytest.mark.parametrize(("heading", "kind"), kinds())
def test_each_message_and_type_has_its_fields_as_declared(page: str, heading: str, kind: type) -> None:
    assert rows_of(section(page, heading)) == field_rows(kind)


def test_the_page_tells_of_no_other_message_or_type(page: str) -> None:
    assert re.findall(r"^### `(\w+)`$", section(page, "## Messages"), re.MULTILINE) == list(MESSAGE_TYPES)
    assert re.findall(r"^### (\w+)$", section(page, "## Types"), re.MULTILINE) == list(used_types())


def test_the_state_table_is_the_one_that_the_code_runs_on(page: str) -> None:
    assert rows_of(section(page, "## States of a session")) == state_rows()


def test_the_methods_are_told_with_types_answerer_and_right(page: str) -> None:
    methods = section(page, "## Methods")
    assert rows_of(methods.partition("\n### ")[0]) == [method_row(row) for row in METHODS.values()]
    assert re.findall(r"^### `([\w.]+)`$", methods, re.MULTILINE) == list(METHODS)


def test_every_methods_section_says_something(page: str) -> None:
    for name in METHODS:
        assert len(section(page, f"### `{name}`").strip()) > 10


def test_the_error_codes_are_told_as_their_table_has_them(page: str) -> None:
    codes = section(page, "## Error codes")
    assert rows_of(codes.partition("\n### ")[0]) == [code_row(code) for code in ERROR_CODES]
    assert re.findall(r"^### `(\w+)`$", codes, re.MULTILINE) == list(ERROR_CODES)
    for code in CLIENT_SIDE_CODES:
        assert "client" in section(page, f"### `{code}`")


def test_the_version_and_the_limits_are_those_of_the_code(page: str) -> None:
    assert f"This page describes version **{PROTOCOL_VERSION}**" in page
    names = [field.name for field in dataclasses.fields(packing.PackLimits) if field.init]
    expected = [
        f"| {name.replace('_', ' ')} | {getattr(packing.HEADER_LIMITS, name):,} "
        f"| {getattr(packing.BODY_LIMITS, name):,} |"
        for name in names
    ]
    assert rows_of(section(page, "## MessagePack, and its limits")) == expected
