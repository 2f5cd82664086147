"""What commands read beside their arguments: text from standard input and from files, also as lines and as JSON.

Whatever is wrong with it is an error of the command line, and says what would do instead.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from enclave_cli.errors import CommandError, Problem, usage
from enclave_cli.output import line, size

Note: TypeAlias = Callable[[str], object]
"""Is told a remark for the person, such as `Invocation.note`."""

JsonMap: TypeAlias = dict[str, Any]

STANDARD_INPUT = "-"
"""A file of this name is standard input."""

_PATIENCE_SECONDS = 2.0
"""How long an open pipe may be silent before a word is said: whoever inherited a pipe by accident would wait for ever
and not know for what."""


# --- standard input --------------------------------------------------------------------------------------------------


def is_terminal() -> bool:
    """Whether a person types at standard input."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]


def may_bring_text(descriptor: int) -> bool:
    """Whether something was put at standard input on purpose: a pipe, a file or a socket, no terminal and no null
    device."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_piped(note: Note, what: str) -> str | None:
    """Everything that standard input brings until its end; None where nothing was piped in.

    `note` is told once when the other end keeps silent instead of bringing `what`. Raises CommandError: usage for bytes
    that are no UTF-8, too_large as soon as more came than a request can hold.
    """
    if sys.stdin is None or sys.stdin.closed:  # pyright: ignore[reportUnnecessaryComparison] - None when fd 0 is closed
        return None
    descriptor = sys.stdin.fileno()
    if not may_bring_text(descriptor):
        return None
    if os.name == "posix" and not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
        note(f"waiting for {what} on standard input (`< /dev/null` where none is to come)")
    return _decoded(_read_limited(sys.stdin.buffer, "standard input"), "standard input")


def read_typed(note: Note, what: str) -> str:
    """Everything typed until Ctrl-D."""
    note(f"type {what}, Ctrl-D ends it")
    return _decoded(_read_limited(sys.stdin.buffer, "standard input"), "standard input")


def piped_lines(note: Note, what: str) -> list[str]:
    """What was piped in, line by line, empty ones too, so that results can be put beside them; none without a pipe."""
    piped = read_piped(note, what)
    return [row.removesuffix("\r") for row in piped.removesuffix("\n").split("\n")] if piped else []


def without_newline(text: str) -> str:
    """`text` without one newline at its end, which programs put there and nobody means."""
    return text.removesuffix("\n").removesuffix("\r")


# --- files -----------------------------------------------------------------------------------------------------------


def read_file(path: str, what: str) -> str:
    """The text of a file that is there for `what`, as it is. Raises CommandError like `read_piped`."""
    try:
        with Path(path).open("rb") as file:
            data = _read_limited(file, line(path))
    except OSError as error:
        raise usage(
            f"the file with {what}, {line(path)!r}, cannot be read: {error.strerror or error}",
            "name a file that is there and that you may read",
        ) from None
    return _decoded(data, line(path))


def read_given(path: str, note: Note, what: str) -> str:
    """The text of a file, or all of standard input where `path` is `-`. Raises CommandError like `read_file`."""
    if path != STANDARD_INPUT:
        return read_file(path, what)
    return read_typed(note, what) if is_terminal() else read_piped(note, what) or ""


# --- JSON ------------------------------------------------------------------------------------------------------------

MESSAGES = "the messages"
_MESSAGES_HINT = 'a conversation is a JSON array of messages, such as [{"role": "user", "content": "Hello"}]'
_TOOLS_HINT = 'tools are a JSON array of objects, such as [{"type": "function", "function": {"name": "look_up"}}]'
_SCHEMA_HINT = 'a schema is a JSON object, such as {"type": "object"}'


def read_messages(path: str, note: Note) -> list[JsonMap]:
    """A conversation, from a file or with `-` from standard input. Raises CommandError."""
    messages = _maps(_parsed(read_given(path, note, MESSAGES), path, _MESSAGES_HINT), path, _MESSAGES_HINT)
    if not messages:
        raise usage(f"{_shown(path)} holds no message", _MESSAGES_HINT)
    return messages


def read_tools(path: str | None) -> list[JsonMap]:
    """The tools in a file; none without a path. Raises CommandError."""
    if path is None:
        return []
    return _maps(_parsed(read_file(path, "the tools"), path, _TOOLS_HINT), path, _TOOLS_HINT)


def read_schema(path: str | None) -> JsonMap | None:
    """The schema in a file; None without a path. Raises CommandError."""
    if path is None:
        return None
    schema = _parsed(read_file(path, "the schema"), path, _SCHEMA_HINT)
    if not isinstance(schema, dict):
        raise usage(f"{_shown(path)} holds {_kind(schema)}, no object", _SCHEMA_HINT)
    return cast("JsonMap", schema)


def _parsed(text: str, path: str, hint: str) -> object:
    from enclave.protocol.errors import LocalProtocolError, RemoteProtocolError
    from enclave.protocol.packing import BODY_LIMITS, pack, unpack

    if not text.strip():
        raise usage(f"{_shown(path)} is empty", hint)
    try:
        # Some editors begin a file with a mark that it is UTF-8.
        value: object = json.loads(text.removeprefix("\ufeff"), parse_constant=_no_number)
        # JSON may hold what no request can: numbers beyond 64 bits, halves of characters, nesting without bounds.
        return unpack(pack(value), BODY_LIMITS, "file")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,}, column {error.colno:,}"
        raise usage(f"{_shown(path)} is not JSON: {error.msg} ({where})", hint) from None
    except ValueError as error:
        raise usage(f"{_shown(path)} is not JSON: {error}", hint) from None
    except (LocalProtocolError, RemoteProtocolError) as error:
        raise usage(f"{_shown(path)} holds what cannot be sent: {error.message}", hint) from None
    except RecursionError:
        raise usage(f"{_shown(path)} is nested too deeply", hint) from None


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no number there")


def _maps(value: object, path: str, hint: str) -> list[JsonMap]:
    if not isinstance(value, list):
        raise usage(f"{_shown(path)} holds {_kind(value)}, no array", hint)
    for number, each in enumerate(cast("list[object]", value), start=1):
        if not isinstance(each, dict):
            raise usage(f"item {number:,} of {_shown(path)} is {_kind(each)}, no object", hint)
    return cast("list[JsonMap]", value)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = ((dict, "an object"), (list, "an array"), (str, "a text"), (bool, "a truth value"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")


def _shown(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else line(path)


# --- bytes -----------------------------------------------------------------------------------------------------------


def _read_limited(stream: BinaryIO, where: str) -> bytes:
    # Imported here, since `enclave run --help` needs neither this nor the libraries below it.
    from enclave.protocol.packing import BODY_LIMITS

    bytes_max = BODY_LIMITS.frame_bytes
    data = stream.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise CommandError(
            Problem(
                "too_large",
                f"{where} brings more than {bytes_max:,} bytes ({size(bytes_max)}), all that a request holds",
                "give less, for example with `head -c`; a model's context takes far less as well",
                numbers={"bytes_max": bytes_max},
            )
        )
    return data


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise usage(
            f"{where} is not UTF-8 text (byte {error.start:,})", "convert it first, for example with iconv"
        ) from None
