"""How a part of the daemon says no: with a code of the protocol's table, for the broker to send as it is."""

from __future__ import annotations

from collections.abc import Mapping

from enclave.protocol.errors import Number


class RefusalError(Exception):
    """Ends a request with an error that a person can act on."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        numbers: Mapping[str, Number] | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        """None: the hint of the code's row."""
        self.numbers = dict(numbers or {})
        self.retry_after = retry_after
        self.field = field
        """Of the request, when that is what is wrong."""
        self.detail = detail
        """Text that came from a model, a prompt or a worker; it travels in the error's body only."""


class HeaderRefusedError(RefusalError):
    """A file's header was read, and it is no model: `bad_model_file`. Reading it again would find the same."""

    def __init__(self, path: str, reason: str, *, is_cut_off: bool = False) -> None:
        super().__init__("bad_model_file", f"{path}: {reason}")
        self.reason = reason
        self.is_cut_off = is_cut_off
        """Whether the file ends too early, so that the rest may still come."""
