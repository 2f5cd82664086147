"""What a caller's arguments become, what is refused before anything is sent, and the page's table of options."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave import RequestOptions, SamplingOptions, calls
from enclave.protocol.bodies import GenerateParams
from enclave.protocol.codec import field_names
from enclave.protocol.messages import Request
from enclave.protocol.methods import read_params
from enclaved.plugin.engine import Sampling

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)

_call: Any = calls
WRONG: list[tuple[str, Callable[[Any], calls.Call], tuple[object, ...]]] = [
    ("prompt", lambda value: calls.generate("m", value, {}), (b"abc", 5, True, 1.5, None, {1: 2}, [1.5], ["a"])),
    ("prompt", lambda value: calls.prefill("m", value, (), (), {}), (b"abc", 5)),
    ("prefix", lambda value: calls.infill("m", value, "", "auto", {}), (b"abc", None)),
    ("suffix", lambda value: calls.infill("m", "", value, "auto", {}), (b"abc", None)),
    ("texts", lambda value: calls.embed("m", value, True, {}), (b"abc", 5, [5], None)),
    ("query", lambda value: calls.rerank("m", value, [], None, {}), (b"abc", 5)),
    ("documents", lambda value: calls.rerank("m", "", value, None, {}), ("text", b"abc", [b"abc"])),
    ("messages", lambda value: calls.render("m", value, (), None, None, True), ("text", 5, ["text"], {"role": "user"})),
    ("tokens", lambda value: calls.detokenize("m", value), ("text", b"abc", 5)),
    ("text", lambda value: calls.tokenize("m", value, True), (b"abc", 5)),
    ("stop", lambda value: calls.generate("m", "", {"stop": value}), (b"abc", 5, [5])),
    ("progress", lambda value: calls.generate("m", "", {"progress": value}), (5,)),
]


@pytest.mark.parametrize(
    ("name", "make", "value"), [(name, make, value) for name, make, values in WRONG for value in values]
)
def test_an_argument_of_the_wrong_type_is_named(name: str, make: Callable[[Any], calls.Call], value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: .*, not ") as caught:
        make(value)
    assert caught.value.__cause__ is None


def test_the_error_says_what_a_prompt_is() -> None:
    wrong: Any = b"abc"
    with pytest.raises(TypeError, match=r"^prompt: text or token ids, not bytes$"):
        calls.generate("m", wrong, {})


@pytest.mark.parametrize("prompt", [[1, 2], (1, 2), array("i", [1, 2]), range(1, 3)])
def test_token_ids_may_come_in_any_sequence_of_integers(prompt: Any) -> None:
    call = calls.generate("m", prompt, {})
    assert read_params(call.request(1)).prompt == (1, 2)


def rows() -> dict[str, str]:
    """Each option of the page's section with its default."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("## Options\n")
    return {name: default for name, _, default, _ in ROW.findall(section.partition("\n## ")[0])}


def test_the_page_has_a_row_for_each_option() -> None:
    assert sorted(rows()) == sorted(SamplingOptions.__annotations__)
    first = list(rows())[: len(RequestOptions.__annotations__)]
    assert sorted(first) == sorted(RequestOptions.__annotations__)


def plain(value: Any) -> str:
    if value in (None, ()) and type(value) is not int:
        return "none"
    return f"`{value}`" if isinstance(value, bool) else f"{value:g}" if isinstance(value, int | float) else str(value)


def test_the_page_tells_the_defaults_that_are_taken() -> None:
    """Unset on the wire is `none`, but for what the worker then takes, and what it draws."""
    request, params, sampling = Request(id=1, method="generate"), GenerateParams(prompt=""), Sampling()
    told = rows()
    known = {
        "priority": "the client's",
        "seed": "a random one",
        "events": "`False`",
        "dry_breakers": 'newline, `:`, `"`, `*`',
        "overflow": '`"error"`',
    }
    for name in told:
        wire_name = {"prefix_name": "prefix"}.get(name, name)
        expected: object = None
        for holder in (sampling, params, request):
            if wire_name in field_names(type(holder)):
                expected = getattr(holder, wire_name)
                break
        assert told[name] == known.get(name, plain(expected)), name
