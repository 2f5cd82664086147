"""The plain prompt loop of `enclave run` on a terminal: a line in, an answer out, nothing remembered.

Lines can be edited and recalled within the session; no history is written to disk.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable

from enclave.exceptions import EnclaveError
from enclave_cli import errors, stdout

PROMPT = ">>> "
LEAVING = "Ctrl-D or /bye ends, Ctrl-C stops an answer."
_GOODBYES = frozenset({"/bye", "exit"})
_LASTING = frozenset({"daemon_unavailable", "connection_lost", "shutting_down"})
"""Errors after which another prompt would fail as well."""


def prompt_loop(answer: Callable[[str], object], read_line: Callable[[str], str] | None = None) -> None:
    """Asks and answers until the end of input, `/bye` or `exit`. Ctrl-C ends a running answer, or empties
    the line; an error of one prompt is told and the next is asked for.

    Raises whatever `answer` raises that no further prompt could survive.
    """
    read_line = read_line or _edited_line()
    sys.stderr.write(LEAVING + "\n")
    sys.stderr.flush()
    while True:
        try:
            prompt = read_line(PROMPT)
        except EOFError:
            stdout.write("\n")
            return
        except KeyboardInterrupt:
            stdout.write("\n")
            continue
        if not prompt.strip():
            continue
        if prompt.strip() in _GOODBYES:
            return
        try:
            answer(prompt)
        except KeyboardInterrupt:
            sys.stderr.write("enclave: cancelled\n")
        except EnclaveError as error:
            if error.code in _LASTING:
                raise
            sys.stderr.write(errors.text(errors.problem_of(error)) + "\n")
        sys.stderr.flush()


def _edited_line() -> Callable[[str], str]:
    with contextlib.suppress(ImportError):  # not on Windows, whose console edits lines by itself
        importlib.import_module("readline")  # which gives `input` its editing
    return input
