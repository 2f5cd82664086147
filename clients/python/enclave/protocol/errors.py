"""What can go wrong on the wire: the one table of error codes, and the two protocol exceptions.

The daemon looks a code up to fill an `error` message, the client to raise the matching exception, and
docs/protocol.md prints the table. Nothing here reads or writes a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

BUSY_SECONDS = 1.0
"""When to come back to a session that has as much open as it may: about what a short answer takes."""

Number = int | float
"""A figure beside an error (`needs_bytes`, `context`): for a program, where the message is for a person."""


class Fault(StrEnum):
    """Who has to change something for the error to go away."""

    CLIENT = "client"
    DAEMON = "daemon"
    MACHINE = "machine"
    PLUGIN = "plugin"


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row: a stable code and what it means, whatever the message of the day says."""

    code: str
    meaning: str
    retryable: bool
    """True when the same request may succeed later without anyone changing anything."""
    hint: str
    """What a person can do; an error message may carry a more exact one."""
    fault: Fault


_ROWS = (
    ErrorCode(
        "bad_message",
        "A message could not be read, or came where the protocol does not allow it.",
        False,
        "Update the client: it speaks the protocol wrongly.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "bad_request",
        "A field of the request is missing, of the wrong type or out of its range.",
        False,
        "Correct the field that the message names.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "version_mismatch",
        "Client and daemon speak different versions of the protocol.",
        False,
        "End the daemon with `enclave stop` after an update (the next call starts it), or update the client.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "unauthorised",
        "The session token is missing or wrong, or the session lacks the right that the method needs.",
        False,
        "Say hello first and use the token of the welcome.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "unknown_method",
        "There is no method of this name.",
        False,
        "Check the spelling; docs/protocol.md lists the methods.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "unsupported",
        "This daemon, backend or model cannot do what was asked.",
        False,
        "Leave the option out, or choose another model or backend.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "model_not_found",
        "No model has this name.",
        False,
        "`enclave list` shows the models; a file is named by its whole path.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "bad_reference",
        "A model reference is malformed, or fits more than one model.",
        False,
        "Write a name, an alias, a path to a file, or source:name.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "model_unreadable",
        "The model's file is missing, is not a file, or may not be read.",
        False,
        "Check that the path exists and that you may read it.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "bad_model_file",
        "The file is not a model file, is cut off, or contradicts itself.",
        False,
        "Fetch the file again.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "unsupported_model",
        "The file is sound, but no backend here can run its kind of model.",
        False,
        "Update the backend, or choose another model.",
        Fault.PLUGIN,
    ),
    ErrorCode(
        "no_backend",
        "No installed backend runs this model, or the backend asked for is not installed.",
        False,
        "`enclave plugins` shows the backends and why one failed to load.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "load_failed",
        "The backend could not load the model.",
        False,
        "The detail holds the backend's own words.",
        Fault.PLUGIN,
    ),
    ErrorCode(
        "out_of_memory",
        "The model or its context does not fit in the memory that can be had.",
        False,
        "Ask for a smaller context or a smaller model, or close what uses memory.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "context_exceeded",
        "The prompt and what it was to produce are longer than the model's context.",
        False,
        "Shorten the prompt, or load the model with a larger context.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "busy",
        "A queue is full.",
        True,
        "Try again after retry_after seconds.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "deadline",
        "The request's deadline passed before it was done.",
        True,
        "Give it more time, or a higher priority.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "cancelled",
        "The request was cancelled.",
        False,
        "Nothing to do: somebody asked for it.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "worker_died",
        "The process that ran the model ended in the middle of the request.",
        True,
        "Try again; the daemon starts a new worker. The detail holds its last words.",
        Fault.PLUGIN,
    ),
    ErrorCode(
        "backing_off",
        "The model's worker died again and again, so the daemon waits before it starts another.",
        True,
        "Wait retry_after seconds; `enclave why` tells what happened.",
        Fault.PLUGIN,
    ),
    ErrorCode(
        "shutting_down",
        "The daemon is about to end.",
        True,
        "Try again: a client starts a new daemon.",
        Fault.DAEMON,
    ),
    ErrorCode(
        "too_large",
        "A message, or a part of one, is larger than the daemon's limits.",
        False,
        "Send less at once; the message says how much may be sent.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "instance_not_found",
        "No instance has this id or runs this model.",
        False,
        "`enclave ps` shows the instances.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "disk_failed",
        "Something cannot be kept on the disk, or what was kept there cannot be read.",
        False,
        "Free space, or give the daemon the right to write the file that the message names.",
        Fault.MACHINE,
    ),
    ErrorCode(
        "internal",
        "The daemon met a defect of its own.",
        False,
        "Please report it, with the end of the daemon's log.",
        Fault.DAEMON,
    ),
    ErrorCode(
        "bad_config",
        "The daemon's configuration is wrong, so it did not start. Told where it is started, never sent.",
        False,
        "Correct the setting that the message names.",
        Fault.CLIENT,
    ),
    ErrorCode(
        "connection_lost",
        "The connection to the daemon ended while something was open. Never sent: the client finds it out.",
        True,
        "Try again; if it happens again, look into the daemon's log.",
        Fault.DAEMON,
    ),
    ErrorCode(
        "daemon_unavailable",
        "No daemon answers, and none could be started. Never sent: the client finds it out.",
        True,
        "Start `enclaved` in a terminal and read what it says.",
        Fault.DAEMON,
    ),
)

ERROR_CODES: Mapping[str, ErrorCode] = MappingProxyType({row.code: row for row in _ROWS})
"""Every code that an error may carry, in the order of docs/protocol.md."""

CLIENT_SIDE_CODES = frozenset({"bad_config", "connection_lost", "daemon_unavailable"})
"""Codes that never travel: the client library raises them by itself."""


def error_code(code: str) -> ErrorCode:
    """The row of a code; a code of a newer daemon gets the row of `internal` under its own name."""
    row = ERROR_CODES.get(code)
    if row is not None:
        return row
    return ErrorCode(code, "A code that this version does not know.", False, "Update the client.", Fault.DAEMON)


class ProtocolError(Exception):
    """The rules of the protocol were broken; the subclass says by which side."""


class LocalProtocolError(ProtocolError):
    """This side tried to send what the protocol does not allow: a bug here. The session's state is unchanged.

    `code` and `field` are those that the other side would have answered with.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "bad_message",
        field: str | None = None,
        numbers: Mapping[str, Number] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.numbers: dict[str, Number] = dict(numbers or {})
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: RemoteProtocolError, message: str | None = None) -> LocalProtocolError:
        """What the other side would have said to it."""
        return cls(
            message or error.message,
            code=error.code,
            field=error.field,
            numbers=error.numbers,
            retry_after=error.retry_after,
        )


class RemoteProtocolError(ProtocolError):
    """The other side sent what cannot be accepted.

    `code` is what to answer (a row of ERROR_CODES), `field` the field at fault where there is one. With `fatal`
    the session is over: answer with an `error` without id and forget the session. Otherwise `request_id` is the
    request to answer, and the session goes on.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "bad_message",
        field: str | None = None,
        request_id: int | None = None,
        fatal: bool = True,
        hint: str | None = None,
        numbers: Mapping[str, Number] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.request_id = request_id
        self.fatal = fatal
        self.hint = hint
        self.numbers: dict[str, Number] = dict(numbers or {})
        self.retry_after = retry_after

    def about(self, request_id: int) -> RemoteProtocolError:
        """The same refusal as one about a single request: to be answered with its id, the session goes on."""
        return RemoteProtocolError(
            self.message,
            code="bad_request" if self.code == "bad_message" else self.code,
            field=self.field,
            request_id=request_id,
            fatal=False,
            hint=self.hint,
            numbers=self.numbers,
            retry_after=self.retry_after,
        )
