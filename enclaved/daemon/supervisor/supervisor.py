"""All children of the daemon: hands out workers, keeps a spare one warm, runs the inspector, ends them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enclaved.daemon.config import setting
from enclaved.daemon.supervisor.child import Child, ChildEndedError, WallsMissingError
from enclaved.daemon.supervisor.inspector import Inspector
from enclaved.daemon.supervisor.launcher import ChildSpec, launch
from enclaved.daemon.supervisor.worker import Worker
from enclaved.plugin.hookspecs import Backend
from enclaved.plugin.model import ModelHeader

PING_SECONDS_MAX = 3.0
"""A spare answers in a millisecond; one that imports its libraries just now holds Python's lock for tens of them."""
OWN_PACKAGES = ("enclaved", "enclave")
"""What every child imports of ours, beside the plugin."""

logger = logging.getLogger("enclaved.supervisor")


@dataclass(frozen=True)
class WorkerSettings:
    """The table `[workers]`."""

    spare: Literal["auto", "always", "never"] = setting(
        "auto",
        "Whether a worker with its libraries imported waits for the next load; auto: once a model has been used.",
    )
    load_seconds_max: float = setting(900.0, "A load that takes longer is given up.", minimum=0)
    stop_seconds_max: float = setting(5.0, "A worker that takes longer to end is killed.", minimum=0)
    cancel_seconds_max: float = setting(10.0, "A worker that takes longer to give up a request is killed.", minimum=0)


class Supervisor:
    """Starts, lends and ends children."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        settings: WorkerSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        environment: Mapping[str, str],
        private_folders: Sequence[str],
        memory_file: Path,
    ) -> None:
        """`memory_file` remembers which backend was used last, over restarts of the daemon."""
        self._backends = backends
        self._settings = settings
        self._loop = loop
        self._environment = environment
        self._private_folders = private_folders
        self._memory_file = memory_file
        self._spare: Worker | None = None
        self._lent: set[Worker] = set()
        packages = tuple(dict.fromkeys(package for backend in backends.values() for package in backend.packages))
        self._inspector, self._tokeniser = (
            Inspector(lambda: self._child(ChildSpec("inspector", OWN_PACKAGES + packages)), loop) for _ in range(2)
        )
        self._closed = False

    async def read_header(self, name: str, reader: str, descriptor: int) -> ModelHeader:
        """The header of an open file, read in the inspector. Raises RefusalError."""
        return await self._inspector.read_header(name, reader, descriptor)

    async def use_vocabulary(
        self, name: str, opener: str, files: Sequence[tuple[str, str, int, int]], method: str, body: bytes
    ) -> bytes:
        """The result's body of `tokenize` or `detokenize`, made in an inspector. Raises RefusalError."""
        return await self._tokeniser.use_vocabulary(name, opener, files, method, body)

    def start_spare(self) -> None:
        """Starts a spare worker, when the settings want one."""
        if self._settings.spare == "never" or self._closed:
            return
        name = self._remembered()
        if name is None and self._settings.spare == "always":
            name = next(iter(self._backends), None)
        if name is not None and name in self._backends:
            self.prepare(name)

    def prepare(self, backend: str) -> None:
        """A model of this backend will be loaded in a moment: have a worker on its way."""
        if self._settings.spare == "never" or self._closed:
            return
        spare = self._spare
        if spare is not None and spare.backend == backend and not spare.child.has_ended:
            return
        if spare is not None:
            spare.child.kill()
            self._spare = None
        try:
            self._spare = self._start(backend)
        except OSError as error:
            # Only time is lost: who needs a worker starts one, and hears of it.
            logger.warning("no spare worker for %s: %s", backend, error)

    async def worker(self, backend: str) -> Worker:
        """A worker for a model of this backend, behind its walls; it is the caller's until `give_back`.

        Raises ChildEndedError, WallsMissingError, OSError.
        """
        if self._closed:
            raise ChildEndedError("the daemon is about to end")
        worker = await self._usable_spare(backend) or self._start(backend)
        self._lent.add(worker)
        try:
            await worker.child.wait_greeted()
        except BaseException:
            worker.child.kill()
            self._lent.discard(worker)
            raise
        return worker

    async def _usable_spare(self, backend: str) -> Worker | None:
        """The spare, if it is of this backend and alive: it may have been stopped or killed while it waited."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        if spare.backend == backend and not spare.child.has_ended and await self._is_alive(spare):
            return spare
        spare.child.kill()
        return None

    async def _is_alive(self, spare: Worker) -> bool:
        self._lent.add(spare)
        try:
            async with asyncio.timeout(PING_SECONDS_MAX):
                await spare.child.wait_greeted()
            return await spare.child.answers(PING_SECONDS_MAX)
        except (ChildEndedError, WallsMissingError, TimeoutError):
            return False
        finally:
            self._lent.discard(spare)

    def was_used(self, backend: str) -> None:
        """A model of this backend has been loaded: from now on a spare worker for it is worth its memory."""
        if self._remembered() != backend:
            temporary = self._memory_file.with_suffix(".new")
            with suppress(OSError):
                temporary.write_text(backend)
                temporary.replace(self._memory_file)
        self.start_spare()

    async def give_back(self, worker: Worker) -> None:
        """Ends a worker and waits for its process's exit."""
        await worker.child.stop(self._settings.stop_seconds_max)
        self._lent.discard(worker)

    async def close(self) -> None:
        """Ends every child."""
        self._closed = True
        workers = [*self._lent, *([self._spare] if self._spare is not None else [])]
        self._spare = None
        seconds = self._settings.stop_seconds_max
        await asyncio.gather(
            self._inspector.close(seconds),
            self._tokeniser.close(seconds),
            *(worker.child.stop(seconds) for worker in workers),
        )

    def _start(self, backend: str) -> Worker:
        light = self._backends[backend]
        child = self._child(ChildSpec("worker", OWN_PACKAGES + light.packages, light.preload))
        return Worker(child, backend, self._loop)

    def _child(self, spec: ChildSpec) -> Child:
        launched = launch(spec, self._environment, self._private_folders)
        logger.info("child %d started: %s", launched.process.pid, spec.kind)
        return Child(launched, self._loop)

    def _remembered(self) -> str | None:
        try:
            return self._memory_file.read_text().strip() or None
        except (OSError, ValueError):
            return None
