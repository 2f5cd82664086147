from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_cli import output


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1_185_376, "1.1 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3000 * 1024**4, "3000.0 TiB"),
    ],
)
def test_a_size_has_the_unit_that_keeps_it_short(size_bytes: int | None, text: str) -> None:
    assert output.size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (306, "5 min 06 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_a_duration_has_the_unit_that_keeps_it_short(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e6))
def test_a_duration_never_says_sixty_of_a_unit(seconds: float) -> None:
    text = output.duration(seconds)
    assert not text.startswith("1000 ms")
    assert not any(f"{sixty} {unit}" in text for sixty in ("60", "60.0") for unit in ("s", "min"))


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (260_032, "260 K"), (7_241_732_096, "7.2 B"), (137_000_000, "137 M"), (None, "-")],
)
def test_a_magnitude_is_told_as_people_say_it(number: int | None, text: str) -> None:
    assert output.magnitude(number) == text


def test_a_rate_without_a_time_is_nothing() -> None:
    assert output.rate(64, 2.0) == "32.0 tokens/s"
    assert output.rate(64, 0.0) == output.rate(64, None) == output.rate(0, 1.0) == "-"


def test_a_table_aligns_its_columns_and_leaves_out_empty_ones() -> None:
    text = output.table(("name", "size", "note"), [("a", "1.0 KiB", ""), ("longer", "12 B", "")], right=("size",))
    assert text.splitlines() == ["NAME       SIZE", "a       1.0 KiB", "longer     12 B"]


def test_wide_characters_keep_the_columns_aligned() -> None:
    text = output.table(("name", "x"), [("模型", "1"), ("ab", "2")])
    assert text.splitlines() == ["NAME  X", "模型  1", "ab    2"]


@given(st.text())
def test_a_line_is_one_line_without_control_characters(text: str) -> None:
    shown = output.line(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)


def test_escape_sequences_of_a_model_cannot_reach_the_terminal() -> None:
    assert "\x1b" not in output.table(("name",), [("\x1b]52;c;c3RvbGVu\x07tiny",)])
    assert output.clean("a\x1b[2Jb\n\tc\r", keep="\n\t") == "a\ufffd[2Jb\n\tc\ufffd"


@given(st.text(alphabet="ab模é", max_size=30), st.integers(1, 20))
def test_cut_text_fits_its_columns(text: str, columns: int) -> None:
    shown = output.cut(text, columns)
    assert output.width_columns(shown) <= columns
    assert shown == text or shown.endswith("…")


def test_facts_without_a_value_are_left_out() -> None:
    assert output.facts([("name", "tiny"), ("a", None), ("b", ""), ("context", "512")]) == "name     tiny\ncontext  512"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_text_is_one_line_that_any_stream_takes(value: object) -> None:
    text = output.json_text(value)
    text.encode()
    assert "\n" not in text
    assert json.loads(text) == value


def test_json_text_keeps_a_file_name_that_is_no_utf_8() -> None:
    assert json.loads(output.json_text({"path": "a\udcff"})) == {"path": "a\udcff"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tiny", "tiny"),
        ("/home/me/models/a.gguf", "/home/me…/a.gguf"),
        ("a" * 10 + "b" * 10, "aaaaaaaa…bbbbbbb"),
        ("x/" + "a" * 10 + "b" * 10, "x/aaaaaa…bbbbbbb"),
    ],
)
def test_a_long_name_loses_its_middle(name: str, shown: str) -> None:
    from enclave_cli.output import shortened

    assert shortened(name, 16) == shown
    assert len(shown) <= 16
