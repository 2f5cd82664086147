"""Runs a long build: everything it prints goes to a log file, its progress to the user, a line at a time.

On a terminal one line is rewritten each second; elsewhere a line is printed now and then. `app` calls it.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_STEP = re.compile(r"(?:^|\s)\[(\d+)/(\d+)\] ")
PLAIN_INTERVAL_SECONDS = 30.0


def ninja_progress(line: str) -> tuple[int, int] | None:
    """(steps done, steps in all) if the line is one of ninja's, `[12/193] …`, else None."""
    match = _STEP.search(line[:64])
    return (int(match.group(1)), int(match.group(2))) if match else None


def progress_text(what: str, elapsed_seconds: float, step: tuple[int, int] | None) -> str:
    """One line: what is going on, for how long, and how far it is."""
    elapsed = f"{int(elapsed_seconds) // 60}:{int(elapsed_seconds) % 60:02d}"
    return f"{what} · {elapsed}" + (f" · step {step[0]} of {step[1]}" if step else "")


def run(command: Sequence[str], environment: Mapping[str, str], log: Path, what: str) -> int:
    """Run `command`, its output in `log`, and return its exit status.

    The command is a process group of its own; whatever ends this function early ends the whole group.
    """
    started = shown = time.monotonic()
    on_terminal = sys.stderr.isatty()
    step: tuple[int, int] | None = None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, kept, lines), daemon=True)
        reader.start()
        try:
            while True:
                try:
                    line = lines.get(timeout=1.0)
                except queue.Empty:
                    line = ""
                if line is None:
                    break
                step = ninja_progress(line) or step
                now = time.monotonic()
                if now - shown >= (1.0 if on_terminal else PLAIN_INTERVAL_SECONDS):
                    shown = now
                    text = progress_text(what, now - started, step)
                    sys.stderr.write(f"\r\x1b[K{text}" if on_terminal else f"{text}\n")
                    sys.stderr.flush()
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            reader.join(timeout=5.0)
            if on_terminal:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log, each cut to 400 characters."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join(line[:400] for line in text.splitlines()[-lines:])


def _copy(source: IO[str], kept: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    try:
        for line in source:
            kept.write(line)
            lines.put(line)
    finally:
        kept.flush()
        lines.put(None)
