"""The catalog's database outlives a process that is killed at any moment while it writes."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

MODELS = 200
WRITER = f"""
    import asyncio, sys
    from pathlib import Path
    from enclaved.daemon.catalog.records import Listed, replace_models
    from enclaved.daemon.catalog.store import Store
    from enclaved.plugin.model import ModelEntry, ModelName

    def entry(name, note):
        return ModelEntry(ModelName(name), "one", (), note=note)

    async def main():
        store, generation = Store(Path(sys.argv[1])), int(sys.argv[2])
        while True:
            generation += 1
            found = [
                Listed(entry(f"m{{n + generation % 7}}", str(generation)), generation, None)
                for n in range({MODELS})
            ]
            await store.write(lambda connection: replace_models(connection, "one", found, float(generation)))
            print(generation, flush=True)

    asyncio.run(main())
"""


def _killed_while_writing(path: Path, generation: int, told: int) -> int:
    """The newest generation that a writer said was written, before it was killed in the midst of a later one."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(generation)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(told):
            generation = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split()
    return int(rest[-1]) if rest else generation


def _check(path: Path, written: int) -> int:
    """All models are of one generation, which is the newest that was told of or the one after it."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute("SELECT name, note, size_bytes FROM models").fetchall()
    connection.close()
    (generation,) = {int(note) for _, note, _ in rows}
    assert generation in (written, written + 1)
    assert {name for name, _, _ in rows} == {f"m{n + generation % 7}" for n in range(MODELS)}
    assert {size for _, _, size in rows} == {generation}
    return generation


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.long)])
def test_whatever_moment_a_writer_is_killed_at_the_last_whole_list_is_there(tmp_path: Path, rounds: int) -> None:
    path, generation, chance = tmp_path / "c.sqlite", 0, random.Random(rounds)
    for _ in range(rounds):
        written = _killed_while_writing(path, generation, chance.randint(1, 6))
        generation = _check(path, written)
    assert generation >= rounds
