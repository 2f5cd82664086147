"""llama.cpp's log: one callback for the process that keeps what a load says and lets only warnings through to stderr.

The engine captures the lines of a load: the errors become the text of a `LoadError`, the buffer sizes its memory
report. llama.cpp calls from any thread, and the callback object must live as long as the process.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import llama_cpp

_WARN, _ERROR, _CONTINUED = 3, 4, 5
"""`enum ggml_log_level`."""

ERROR_LINES_MAX = 20
BUFFER_LINES_MAX = 256
LINE_CHARACTERS_MAX = 300

_BUFFER = re.compile(r"^\w+:\s+(?P<name>.+?) buffer size = *(?P<mebibytes>[0-9.]+) MiB")
_ORIGIN = re.compile(r"^(?:\w+: |error loading model(?: \w+)?: )+")
_NO_MEMORY = re.compile(r"(?:failed|unable) to allocate|insufficient memory|out of memory", re.IGNORECASE)


@dataclass
class LoadLog:
    """What a load said."""

    errors: list[str] = field(default_factory=list[str])
    """The first of them, without the function's name before."""
    buffers: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """(name as `CPU KV`, bytes), rounded by llama.cpp to 0.01 MiB."""

    @property
    def reason(self) -> str:
        """The first error, which names the cause; those after it name who gave up because of it."""
        return self.errors[0] if self.errors else "llama.cpp gave no reason"

    @property
    def out_of_memory(self) -> bool:
        return any(_NO_MEMORY.search(line) for line in self.errors)

    def add(self, level: int, line: str) -> None:
        if level == _ERROR:
            if len(self.errors) < ERROR_LINES_MAX:
                self.errors.append(_ORIGIN.sub("", line) or line)
        elif len(self.buffers) < BUFFER_LINES_MAX and (match := _BUFFER.match(line)):
            self.buffers.append((match["name"], int(float(match["mebibytes"]) * 2**20)))


class _Listener:
    """Takes llama.cpp's lines. At most one load is captured at a time: a worker loads one model."""

    def __init__(self) -> None:
        self.load: LoadLog | None = None
        self._level = 0
        self._lock = threading.Lock()

    def hear(self, level: int, text: bytes | None, _: object) -> None:
        with self._lock:
            # A continued line has the level of the one it continues.
            self._level = level = self._level if level == _CONTINUED else level
            line = _printable((text or b"").decode("utf-8", "replace"))
            if not line:
                return
            if self.load is not None:
                self.load.add(level, line)
            if level in (_WARN, _ERROR):
                print(f"llama.cpp: {line}", file=sys.stderr)


def _printable(text: str) -> str:
    """The log quotes names from model files, so nothing in it may move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text[:LINE_CHARACTERS_MAX]).strip()


_listener = _Listener()
_callback = llama_cpp.llama_log_callback(_listener.hear)


@contextmanager
def captured_load() -> Generator[LoadLog]:
    """Captures the log while a model is loaded. Replaces the callback that `import llama_cpp` installs."""
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    load = LoadLog()
    _listener.load = load
    try:
        yield load
    finally:
        _listener.load = None
