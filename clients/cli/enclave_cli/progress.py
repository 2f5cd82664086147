"""What a person reads while a request waits: the daemon's progress as one short sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from enclave_cli.output import count, size

if TYPE_CHECKING:
    from enclave.protocol.messages import Progress
    from enclave_cli.daemon import Notice
    from enclave_cli.status_line import StatusLine


def shown_on(status: StatusLine, model: str) -> Notice:
    """What a client is to call with its progress, so that the status line tells it."""

    def show(progress: Progress) -> None:
        status.show(sentence(progress, model))

    return show


def sentence(progress: Progress, model: str) -> str:
    """`loading tiny: 40 %`, `waiting: 2 requests ahead (the model is busy)`, `reading the prompt: 300 of 2,000
    tokens`."""
    stage = str(progress.stage)
    if stage == "queued":
        said = "waiting"
        if progress.ahead:
            said += f": {_requests(progress.ahead)} ahead"
        elif progress.position:
            said += f": number {progress.position} in the queue"
    elif stage == "loading":
        said = f"loading {model}" + _share(progress, size)
    elif stage == "prompt":
        said = "reading the prompt" + _share(progress, count, " tokens")
    else:
        said = stage + _share(progress, size)
    # The daemon's reasons are codes: words, but for the underscore. One that repeats the stage says nothing more.
    reason = (progress.reason or "").replace("_", " ")
    return f"{said} ({reason})" if reason and reason != stage else said


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number:,} requests"


def _share(progress: Progress, shown: Callable[[int], str], unit: str = "") -> str:
    if progress.fraction is not None:
        return f": {progress.fraction * 100:.0f} %"
    if progress.done is not None and progress.total:
        return f": {shown(progress.done)} of {shown(progress.total)}{unit}"
    return ""
