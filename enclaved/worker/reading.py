"""Long prompts become tokens in a thread of their own, so that the answers of others need not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from enclaved.link.messages import Submit
from enclaved.plugin.engine import Engine
from enclaved.worker.asked import Asked
from enclaved.worker.intake import RefusedError, read
from enclaved.worker.texts import ReadTexts, read_texts

LONG_BODY_BYTES = 16 * 1024
"""A shorter one is tokenised in a few milliseconds, which is less than a step."""


@dataclass(frozen=True)
class WasRead:
    """What became of a `Submit`."""

    command: Submit
    outcome: Asked | ReadTexts | RefusedError


class Reader:
    """Reads requests in the order in which they come; started when the first comes."""

    def __init__(self, engine: Engine, done: Callable[[WasRead], None]) -> None:
        """`done` is called in the reader's thread."""
        self._engine = engine
        self._done = done
        self._queue: SimpleQueue[Submit] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def read(self, command: Submit) -> None:
        """Has a request read."""
        self._queue.put(command)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            command = self._queue.get()
            self._done(WasRead(command, outcome_of(command, self._engine)))


def outcome_of(command: Submit, engine: Engine) -> Asked | ReadTexts | RefusedError:
    """What a request asks for, or why it cannot be done."""
    try:
        if command.method in ("embed", "rerank"):
            return read_texts(command, engine)
        return read(command, engine)
    except RefusedError as refused:
        return refused
    except Exception as error:  # noqa: BLE001
        # A backend's tokeniser should map these; whoever brought the text is told, and the others are served.
        return RefusedError("internal", "The backend could not read the request.", detail=type(error).__name__)
