"""Results as strings: tables, sizes and durations for people, JSON for programs.

Every command prints through these functions; they read nothing and write nothing. Names and notes that came from a
model's file are cleaned here, so that no file can send control sequences to a terminal.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from enum import Enum
from typing import cast

NOTHING = "-"
"""What a table shows where there is no value."""

_GAP = "  "
_UNSAFE = frozenset({"Cc", "Cs"})
# Joiners and marks (Cf) belong to real languages and emoji; a table cell has no need of the direction overrides.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""The control characters that JSON allows as they are."""
_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: str, *, keep: str = "") -> str:
    """`text` with every control and invisible formatting character, but those in `keep`, shown as U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in _UNSAFE else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def line(text: str) -> str:
    """`text` as one safe line: white space of any kind becomes a single blank."""
    joined = " ".join(text.split())
    return clean("".join(c for c in joined if c not in _OVERRIDES))


def width_columns(text: str) -> int:
    """Columns that `text` takes on a terminal: 2 for wide East Asian characters, 0 for combining ones (UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, columns: int) -> str:
    """`text`, shortened with an ellipsis where it would take more than `columns` columns."""
    if width_columns(text) <= columns:
        return text
    kept = ""
    for c in text:
        if width_columns(kept + c) > columns - 1:
            break
        kept += c
    return kept + "…"


def shortened(name: str, columns: int) -> str:
    """`name` in at most `columns` columns, with an ellipsis in the middle; of a path, the file's name is kept, or its
    end where that alone is too long."""
    if width_columns(name) <= columns:
        return name
    folder, separator, last = name.rpartition("/")
    tail = f"…{separator}{last}"
    if separator and width_columns(tail) <= columns:
        return cut(folder, columns - width_columns(tail) + 1).removesuffix("…") + tail
    half = (columns - 1) // 2
    end = last[::-1]
    return cut(name, columns - half).removesuffix("…") + "…" + cut(end, half + 1).removesuffix("…")[::-1]


LOOSE_COLUMNS_MAX = 40
"""To what width a loose column of a table aligns the others."""


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = (), loose: Collection[str] = ()
) -> str:
    """Aligned columns under upper-case headings, without a final newline.

    `right` names the columns that are aligned there. A column without any value in any row is left out;
    an empty cell is `-`, so that the fields of a line can be counted, but for a column without a heading (a mark).
    In a `loose` column, a cell beyond LOOSE_COLUMNS_MAX pushes its own line aside and pads no other.
    """
    cells = [[line(cell) for cell in row] for row in rows]
    used = [i for i in range(len(headings)) if not cells or any(row[i] not in ("", NOTHING) for row in cells)]
    lines = [
        [line(headings[i]).upper() for i in used],
        *([row[i] or (NOTHING if headings[i] else "") for i in used] for row in cells),
    ]
    widths = [max(width_columns(row[k]) for row in lines) for k in range(len(used))]
    widths = [
        min(width, LOOSE_COLUMNS_MAX) if headings[i] in loose else width for width, i in zip(widths, used, strict=True)
    ]
    return "\n".join(
        _GAP.join(padded(cell, widths[k], right=headings[used[k]] in right) for k, cell in enumerate(row)).rstrip()
        for row in lines
    )


def facts(pairs: Iterable[tuple[str, str | None]]) -> str:
    """One `name  value` line for each pair that has a value, the values aligned."""
    kept = [(name, value) for name, value in pairs if value not in (None, "")]
    name_columns = max((width_columns(name) for name, _ in kept), default=0)
    return "\n".join(f"{padded(name, name_columns)}{_GAP}{line(value or '')}" for name, value in kept)


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """`text` with blanks up to so many columns."""
    blanks = " " * (columns - width_columns(text))
    return blanks + text if right else text + blanks


def size(size_bytes: int | None) -> str:
    """`1.2 MiB`: binary units, three digits at most before the point. None is `-`."""
    if size_bytes is None:
        return NOTHING
    value = float(size_bytes)
    for unit in _SIZE_UNITS:
        last = unit == _SIZE_UNITS[-1]
        if unit == "B" and abs(value) < 1024:
            return f"{size_bytes} B"
        if last or abs(round(value, 1)) < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes every value")


def duration(seconds: float | None) -> str:
    """`12 ms`, `3.4 s`, `5 min 06 s`, `2 h 05 min`. None is `-`."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def rate(tokens: int, seconds: float | None) -> str:
    """`42.0 tokens/s`; `-` where nothing was measured."""
    if not seconds or seconds < 0 or tokens <= 0:
        return NOTHING
    return f"{tokens / seconds:.1f} tokens/s"


def clock_time(at: float, zone: tzinfo | None = None, now: float | None = None) -> str:
    """`14:03:07.250` for seconds since 1970, in the local zone by default; with a `now`, what is not of its day has a
    date before it."""
    when = datetime.fromtimestamp(at, UTC).astimezone(zone)
    is_of_today = now is None or when.date() == datetime.fromtimestamp(now, UTC).astimezone(zone).date()
    return when.strftime("%H:%M:%S.%f" if is_of_today else "%Y-%m-%d %H:%M:%S.%f")[:-3]


def measure(name: str, value: object) -> str:
    """A value of a map as its name says: `bytes` in it is a size, `seconds` at its end a duration."""
    words = name.split("_")
    if isinstance(value, (list, tuple)):
        return ", ".join(_named(item) for item in cast("Iterable[object]", value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if "bytes" in words and isinstance(value, int):
        return size(value)
    return duration(value) if words[-1] == "seconds" else f"{value:.6g}" if isinstance(value, float) else str(value)


def _named(item: object) -> str:
    if isinstance(item, Mapping):
        thing = cast("Mapping[str, object]", item)
        return str(thing.get("name") or thing)
    return str(item)


def measures(data: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The values of a map, of maps in it too, each with its name; without those that say nothing."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from measures(cast("Mapping[str, object]", value))
        elif value not in (None, "", [], ()):
            yield name, measure(name, value)


def count(number: int | None) -> str:
    """`260,032`. None is `-`."""
    return NOTHING if number is None else f"{number:,}"


def magnitude(number: int | None) -> str:
    """`260 K`, `7.2 B`: parameters as people say them, in powers of a thousand. None is `-`."""
    if number is None:
        return NOTHING
    value = float(number)
    for unit in ("", " K", " M", " B"):
        if abs(value) < 999.5:
            return f"{value:.0f}{unit}" if abs(value) >= 99.95 or not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"


def plain(value: object) -> object:
    """A typed result as maps, lists and scalars. Every field is there, None where there is no value."""
    if isinstance(value, Enum):
        return cast(object, value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in cast("Iterable[object]", value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def plain_map(value: object) -> dict[str, object]:
    """A dataclass or map as a map with plain values; empty for None."""
    return cast("dict[str, object]", plain(value)) if value is not None else {}


def json_text(value: object) -> str:
    """One line of JSON. Text stays readable, but for lone surrogates (a file name that is no UTF-8), which are escaped
    since no stream could take them, and for control characters, to which a terminal might listen."""
    text = json.dumps(plain(value), ensure_ascii=False).translate(_ESCAPED)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(plain(value), ensure_ascii=True)
    return text
