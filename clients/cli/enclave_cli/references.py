"""From what a person typed for MODEL to the reference that the daemon is asked for.

The daemon runs in a folder of its own, so a path has to be made absolute here, where the person stands. Everything
else goes out as typed: which names exist is the daemon's knowledge alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from enclave_cli.errors import is_text, usage
from enclave_cli.output import line

DEFAULT_MODEL = ""
"""The empty reference: the daemon chooses its default model."""

_MODEL_SUFFIXES = (".gguf", ".onnx")
_SCHEME = re.compile(r"[a-z][a-z0-9_+.-]+:")
"""`folder:name`, `fake:speed=10`: a source's own reference. Two letters at least, so that `C:\\` is a path."""


def is_path(typed: str, exists: Callable[[str], bool] = os.path.isfile) -> bool:
    """Whether `typed` means a file: it starts like a path, or has a separator or a model's suffix and no source before
    it, or is the name of a file that is there. A source's prefix (`folder:a/b`) wins over all but an absolute path."""
    if typed.startswith(("/", "./", "../", "~/", ".\\", "..\\")) or (os.name == "nt" and Path(typed).is_absolute()):
        return True
    if not typed or _SCHEME.match(typed):
        return False
    has_separator = "/" in typed or (os.name == "nt" and "\\" in typed)
    return has_separator or typed.lower().endswith(_MODEL_SUFFIXES) or exists(typed)


def reference(typed: str | None) -> str:
    """The reference to send for what was typed; nothing typed is the daemon's default model.

    Raises CommandError (usage) for an empty name, and for a path that cannot be sent.
    """
    if typed is None:
        return DEFAULT_MODEL
    if not typed.strip():
        raise usage("MODEL is empty", "`enclave list` shows the models; is a variable of the shell unset?")
    if not is_path(typed):
        return typed
    # Not resolved: a link's own name is what the person calls the model.
    path = os.path.abspath(Path(typed).expanduser())  # noqa: PTH100
    if not is_text(path):
        raise usage(f"the path {line(path)!r} is not valid UTF-8", "rename the folder, or link to the file elsewhere")
    return path


def looks_like_a_model(typed: str) -> bool:
    """Whether it can hardly be anything else: a path, or a source's reference."""
    return is_path(typed) or _SCHEME.match(typed) is not None


def looks_like_a_prompt(typed: str, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Whether a MODEL that could not be resolved was rather meant as a prompt: it has blanks, and is no file."""
    return any(c.isspace() for c in typed.strip()) and not exists(typed)
