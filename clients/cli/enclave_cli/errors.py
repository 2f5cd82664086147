"""What a failed command says and which exit code it leaves: the one edge between exceptions and the person.

`main` hands every exception here and prints what comes back. Nothing here imports the client library: its errors are
told by their shape, so that `enclave --help` stays quick and a broken installation can still be explained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, cast

import click

from enclave_cli.output import clean, cut, json_text, line


class ExitCode(IntEnum):
    """Documented in `enclave --help` and docs/cli.md; scripts rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    ALREADY_RUNNING = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the daemon or the model answered with an error",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.ALREADY_RUNNING: "a daemon runs already (serve)",
    ExitCode.UNREACHABLE: "the daemon cannot be started or reached",
    ExitCode.INTERRUPTED: "stopped with Ctrl-C",
}

_UNREACHABLE_CODES = frozenset({"daemon_unavailable", "connection_lost", "bad_config"})
"""What no running daemon answers: the client library found it out by itself, or a daemon that did not start said so."""

NOT_STARTED_HINT = "leave out --no-start, or start one with `enclave serve`"
"""Of `daemon_unavailable` where none may be started: the client library's own hint speaks of its options."""


def speaks_of_starting(code: str, hint: str) -> bool:
    """Whether an error is about a daemon that was not to be started. One that runs and does not answer has other
    hints."""
    if code != "daemon_unavailable":
        return False
    from enclave import connecting

    return hint == connecting.NOT_STARTED_HINT


@dataclass(frozen=True)
class Problem:
    """A failure as a person and a program read it; the fields of an error of the protocol."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False
    retry_after: float | None = None
    """Seconds after which trying again makes sense."""
    numbers: Mapping[str, int | float | str] = field(default_factory=dict[str, "int | float | str"])
    detail: str = ""
    """Longer text from a backend or a model."""
    exit_code: ExitCode = ExitCode.FAILED


class CommandError(Exception):
    """A command's own way to fail: carries its Problem to the edge."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def usage(message: str, hint: str = "") -> CommandError:
    """The error of a wrong command line that click itself cannot see."""
    return CommandError(Problem("usage", message, hint, exit_code=ExitCode.USAGE))


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises CommandError (usage) for an argument whose bytes are no UTF-8: it could not be sent, nor be shown."""
    for number, argument in enumerate(arguments, start=1):
        if not is_text(argument):
            raise usage(
                f"argument {number}, {cut(line(argument), ARGUMENT_COLUMNS_MAX)!r}, is not valid UTF-8",
                "name it in UTF-8; a prompt can be converted and piped in, for example with iconv",
            )


ARGUMENT_COLUMNS_MAX = 60
"""What is shown of an argument in a message."""


def is_text(value: str) -> bool:
    """Whether it can be encoded: Python keeps the bytes of an argument that is no UTF-8 as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def problem_of(error: BaseException) -> Problem:
    """The Problem that an exception means; whatever is not foreseen is `internal`."""
    if isinstance(error, CommandError):
        return error.problem
    if isinstance(error, click.ClickException):
        return _usage_problem(error)
    code = getattr(error, "code", None)
    if isinstance(code, str) and hasattr(error, "retryable"):
        return _daemon_problem(error, code)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Problem("system", f"the system refused: {where}{error.strerror or error}")
    name = type(error).__name__
    said = str(error)
    return Problem(
        code="internal",
        message=f"unexpected {name}: {said}" if said else f"unexpected {name}",
        hint="this is a defect of Enclave: set ENCLAVE_DEBUG=1, run it again and report what it prints",
    )


_PLAINER = {"is not a valid integer range": "is not a whole number", "is not a valid float range": "is not a number"}
"""Words of click for what is no number at all, and others that say it."""


def _usage_problem(error: click.ClickException) -> Problem:
    context = getattr(error, "ctx", None)
    path = cast("click.Context", context).command_path if context is not None else "enclave"
    message = error.format_message()
    for said, meant in _PLAINER.items():
        message = message.replace(said, meant)
    return Problem("usage", message, f"`{path} --help` shows how it is used", exit_code=ExitCode.USAGE)


def _daemon_problem(error: BaseException, code: str) -> Problem:
    numbers: Any = getattr(error, "numbers", None) or {}
    return Problem(
        code=code,
        message=str(getattr(error, "message", "") or error),
        hint=str(getattr(error, "hint", "") or ""),
        retryable=bool(getattr(error, "retryable", False)),
        retry_after=getattr(error, "retry_after", None),
        numbers=dict(numbers),
        detail=str(getattr(error, "detail", "") or ""),
        exit_code=ExitCode.UNREACHABLE if code in _UNREACHABLE_CODES else ExitCode.FAILED,
    )


def with_hint(error: BaseException, hint: str) -> CommandError:
    """The same failure with a hint that fits the command better."""
    return CommandError(replace(problem_of(error), hint=hint))


def document(problem: Problem, *, lines: bool = False) -> str:
    """The JSON document that `--json` prints in place of a result; as one of `lines` it has a `type`."""
    return json_text({**({"type": "error"} if lines else {}), "error": error_map(problem)})


def error_map(problem: Problem) -> dict[str, object]:
    """The value of `error` in JSON output."""
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "retryable": problem.retryable,
        "retry_after": problem.retry_after,
        "numbers": dict(problem.numbers),
        "detail": problem.detail,
    }


DETAIL_LINES_MAX = 6
"""Lines of a backend's own words that are shown; `--json` has them all. Its last words are the useful ones."""


def text(problem: Problem) -> str:
    """What standard error gets: `enclave: message`, then detail and hint on lines of their own."""
    lines = [f"enclave: {line(problem.message)}"]
    hint = line(problem.hint)
    if hint and hint in lines[0]:
        hint = ""
    rows = (clean(row.expandtabs(4)).rstrip() for row in problem.detail.splitlines() if row.strip())
    said = [row for row in rows if not _is_said(line(row), line(problem.message), line(problem.hint))]
    if len(said) > DETAIL_LINES_MAX:
        lines.append(f"  … ({len(said) - DETAIL_LINES_MAX} lines more with --json)")
    lines.extend(f"  {row}" for row in said[-DETAIL_LINES_MAX:])
    if hint:
        lines.append(f"hint: {hint}")
    return "\n".join(lines)


def _is_said(row: str, message: str, hint: str) -> bool:
    """Whether a line of detail tells only what message and hint tell: a log's tail often ends with both."""
    return any(part and (part in row or row in part) for part in (message, hint))
