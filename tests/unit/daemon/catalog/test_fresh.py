"""Whoever asks gets what was found after the question, and all who wait share one run."""

from __future__ import annotations

import asyncio

import pytest

from enclaved.daemon.catalog.fresh import Fresh

pytestmark = pytest.mark.asyncio


class Work:
    """Is done when the test says."""

    def __init__(self) -> None:
        self.begun = 0
        self.ends: list[asyncio.Future[None]] = []

    async def __call__(self) -> None:
        self.begun += 1
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        await end


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_asks_during_a_run_waits_for_the_next_one() -> None:
    work = Work()
    fresh = Fresh(work)
    first = asyncio.create_task(fresh.run())
    await _turn()
    later = [asyncio.create_task(fresh.run()) for _ in range(3)]
    await _turn()
    assert work.begun == 1
    work.ends[0].set_result(None)
    await _turn()
    assert first.done()
    assert (work.begun, [task.done() for task in later]) == (2, [False] * 3)
    work.ends[1].set_result(None)
    await asyncio.gather(*later)
    assert work.begun == 2


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    work = Work()
    fresh = Fresh(work)
    first, second = asyncio.create_task(fresh.run()), asyncio.create_task(fresh.run())
    await _turn()
    first.cancel()
    await _turn()
    work.ends[0].set_result(None)
    await second
    assert work.begun == 1


async def test_a_run_that_fails_fails_for_those_who_waited_for_it() -> None:
    work = Work()
    fresh = Fresh(work)
    first = asyncio.create_task(fresh.run())
    await _turn()
    later = asyncio.create_task(fresh.run())
    work.ends[0].set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await first
    await _turn()
    work.ends[1].set_result(None)
    await later
