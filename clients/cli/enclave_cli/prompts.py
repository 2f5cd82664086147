"""How the prompt of `enclave run` is put together from the command line and a pipe. Pure.

inputs.py reads the pipe; reading a terminal line by line is prompt_loop.py's matter.
"""

from __future__ import annotations

from enclave_cli.inputs import without_newline


def joined(prompt: str | None, piped: str | None) -> str | None:
    """The prompt as it is sent: what was typed, a blank line, what was piped. None when there is neither.

    The piped text loses one final newline; an empty pipe is no prompt.
    """
    piped = without_newline(piped or "")
    if not piped:
        return prompt
    return piped if not prompt else f"{prompt}\n\n{piped}"
