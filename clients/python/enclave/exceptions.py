"""The exceptions of the client: one family, one class for each error code of the protocol.

The client raises them for the daemon's `error` messages and for what it finds out itself. Nothing foreign (ZeroMQ,
sockets, the protocol machine) leaks out of the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from enclave.protocol.errors import LocalProtocolError, Number, RemoteProtocolError, error_code
from enclave.protocol.records import record


class EnclaveError(Exception):
    """Something the daemon, or the way to it, could not do.

    `code` is stable and for programs, the text is for people, `hint` says what to do about it. `detail` is text that
    came from a model's process, such as its last words, and may hold parts of a prompt: don't log it unasked.
    """

    CODE: ClassVar[str | None] = None

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        numbers: Mapping[str, Number] | None = None,
        detail: str = "",
    ) -> None:
        row = error_code(code or self.CODE or "internal")
        self.code = row.code
        self.message = message or row.meaning
        if hint is None:
            # The row's hint speaks of the field that the message names; not every message names one.
            hint = "" if row.code == "bad_request" and message and field is None else row.hint
        if retry_after is not None:
            hint = hint.replace("retry_after seconds", f"{retry_after:g} s")
        self.hint = hint
        self.retryable = row.retryable if retryable is None else retryable
        self.retry_after = retry_after
        """Seconds after which trying again makes sense."""
        self.field = field
        """The field of the request that is at fault."""
        self.numbers: dict[str, Number] = dict(numbers or {})
        self.detail = detail
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code}: {self.message}>"


class BadMessageError(EnclaveError):
    """A message could not be read, or came where the protocol does not allow it."""

    CODE = "bad_message"


class BadRequestError(EnclaveError):
    """A field of the request is missing, of the wrong type or out of its range."""

    CODE = "bad_request"


class VersionMismatchError(EnclaveError):
    """Client and daemon speak different versions of the protocol."""

    CODE = "version_mismatch"


class UnauthorisedError(EnclaveError):
    """The session token is missing or wrong, or the session lacks the right that the method needs."""

    CODE = "unauthorised"


class UnknownMethodError(EnclaveError):
    """There is no method of this name."""

    CODE = "unknown_method"


class UnsupportedError(EnclaveError):
    """This daemon, backend or model cannot do what was asked."""

    CODE = "unsupported"


class ModelNotFoundError(EnclaveError):
    """No model has this name."""

    CODE = "model_not_found"


class BadReferenceError(EnclaveError):
    """A model reference is malformed, or fits more than one model."""

    CODE = "bad_reference"


class ModelUnreadableError(EnclaveError):
    """The model's file is missing, is not a file, or may not be read."""

    CODE = "model_unreadable"


class BadModelFileError(EnclaveError):
    """The file is not a model file, is cut off, or contradicts itself."""

    CODE = "bad_model_file"


class UnsupportedModelError(EnclaveError):
    """The file is sound, but no backend here can run its kind of model."""

    CODE = "unsupported_model"


class NoBackendError(EnclaveError):
    """No installed backend runs this model, or the backend asked for is not installed."""

    CODE = "no_backend"


class LoadFailedError(EnclaveError):
    """The backend could not load the model."""

    CODE = "load_failed"


class OutOfMemoryError(EnclaveError):
    """The model or its context does not fit in the memory that can be had."""

    CODE = "out_of_memory"


class ContextExceededError(EnclaveError):
    """The prompt and what it was to produce are longer than the model's context."""

    CODE = "context_exceeded"


class BusyError(EnclaveError):
    """A queue is full."""

    CODE = "busy"


class DeadlineError(EnclaveError):
    """The request's deadline passed before it was done."""

    CODE = "deadline"


class CancelledError(EnclaveError):
    """The request was cancelled."""

    CODE = "cancelled"


class WorkerDiedError(EnclaveError):
    """The process that ran the model ended in the middle of the request."""

    CODE = "worker_died"


class BackingOffError(EnclaveError):
    """The model's worker died again and again, so the daemon waits before it starts another."""

    CODE = "backing_off"


class ShuttingDownError(EnclaveError):
    """The daemon is about to end."""

    CODE = "shutting_down"


class TooLargeError(EnclaveError):
    """A message, or a part of one, is larger than the daemon's limits."""

    CODE = "too_large"


class InstanceNotFoundError(EnclaveError):
    """No instance has this id or runs this model."""

    CODE = "instance_not_found"


class DiskFailedError(EnclaveError):
    """Something cannot be kept on the disk, or what was kept there cannot be read."""

    CODE = "disk_failed"


class InternalError(EnclaveError):
    """The daemon met a defect of its own."""

    CODE = "internal"


class BadConfigError(EnclaveError):
    """The daemon's configuration is wrong, so it did not start."""

    CODE = "bad_config"


@record
class LostRequest:
    """A request that was open when its connection was lost."""

    id: int
    """Its number in the session that was lost."""
    method: str
    model: str | None
    had_begun: bool
    """Whether a part of its answer had come."""

    def __str__(self) -> str:
        return f"request {self.id} ({self.method}{f' of {self.model}' if self.model else ''})"


class ConnectionLostError(EnclaveError):
    """The connection to the daemon ended while something was open. Never sent: the client finds it out."""

    CODE = "connection_lost"

    request: LostRequest | None = None
    """The one that this is raised for; None when there was none."""
    lost: tuple[LostRequest, ...] = ()
    """All that were lost with it and are not asked again."""

    @classmethod
    def about(cls, request: LostRequest, message: str, lost: tuple[LostRequest, ...]) -> ConnectionLostError:
        """The error of one request among those lost."""
        why = "had begun to answer" if request.had_begun else "could not be asked again"
        error = cls(f"{message}: {request} {why}")
        error.request, error.lost = request, lost
        return error


class DaemonUnavailableError(EnclaveError):
    """No daemon answers, and none could be started. Never sent: the client finds it out."""

    CODE = "daemon_unavailable"


BY_CODE: Mapping[str, type[EnclaveError]] = {kind.CODE: kind for kind in EnclaveError.__subclasses__() if kind.CODE}
"""The class of each code."""


def error_for(
    code: str,
    message: str = "",
    *,
    hint: str | None = None,
    retryable: bool | None = None,
    retry_after: float | None = None,
    field: str | None = None,
    numbers: Mapping[str, Number] | None = None,
    detail: str = "",
) -> EnclaveError:
    """The exception for a code; EnclaveError itself for one that only a newer daemon knows."""
    kind = BY_CODE.get(code, EnclaveError)
    return kind(
        message,
        code=code,
        hint=hint,
        retryable=retryable,
        retry_after=retry_after,
        field=field,
        numbers=numbers,
        detail=detail,
    )


def error_from(error: LocalProtocolError | RemoteProtocolError) -> EnclaveError:
    """The exception for what the protocol machine refused; what this side may not send is a bad request."""
    local = isinstance(error, LocalProtocolError)
    code = "bad_request" if local and error.code == "bad_message" else error.code
    return error_for(code, error.message, field=error.field, numbers=error.numbers, retry_after=error.retry_after)
