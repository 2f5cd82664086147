from __future__ import annotations

import pytest

from enclave.protocol.messages import Progress, Stage
from enclave_cli.progress import sentence


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress(id=1, stage=Stage.QUEUED), "waiting"),
        (Progress(id=1, stage=Stage.QUEUED, position=3), "waiting: number 3 in the queue"),
        (Progress(id=1, stage=Stage.QUEUED, ahead=1, reason="busy"), "waiting: 1 request ahead (busy)"),
        (Progress(id=1, stage=Stage.QUEUED, reason="backing_off"), "waiting (backing off)"),
        (Progress(id=1, stage=Stage.LOADING), "loading tiny"),
        (Progress(id=1, stage=Stage.LOADING, reason="loading"), "loading tiny"),
        (Progress(id=1, stage=Stage.LOADING, fraction=0.4), "loading tiny: 40 %"),
        (Progress(id=1, stage=Stage.LOADING, done=1024, total=4096), "loading tiny: 1.0 KiB of 4.0 KiB"),
        (Progress(id=1, stage=Stage.PROMPT, done=300, total=2000), "reading the prompt: 300 of 2,000 tokens"),
        (Progress(id=1, stage=Stage.TRANSFER, done=512, total=1024), "transfer: 512 B of 1.0 KiB"),
    ],
)
def test_progress_says_why_and_how_far(progress: Progress, said: str) -> None:
    assert sentence(progress, "tiny") == said
