"""The one error of the setup: what went wrong and what to do next. `app.main` prints it and exits with 1."""

from __future__ import annotations


class SetupError(Exception):
    """The setup cannot go on. `message` says why, `hint` what the user can do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
