"""The composition root: builds the daemon's parts, ties them together, runs them until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

from enclave.paths import DaemonState, Places, socket_path, write_state
from enclave.protocol.messages import PROTOCOL_VERSION
from enclaved import __version__
from enclaved.core.events import ShutdownAsked
from enclaved.core.ids import DeviceId
from enclaved.core.state import Device, Limits, State
from enclaved.core.story import Story
from enclaved.daemon.broker import Broker, BrokerSettings
from enclaved.daemon.catalog import Catalog, CatalogSettings, Folders, HeaderCache, Looker, Store
from enclaved.daemon.clock import Clock, SystemClock
from enclaved.daemon.conductor import Conductor
from enclaved.daemon.config import Config, DaemonSettings
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.hardware import CpuSettings, MemorySettings, memory_limit_bytes, read_machine, usable_cores
from enclaved.daemon.methods import Identity, Methods
from enclaved.daemon.models import Models
from enclaved.daemon.needs import InstanceSettings, header_readers_of
from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.startup import HomeLock, ReadyPipe, remove_socket_folder
from enclaved.daemon.supervisor import Supervisor, WorkerSettings
from enclaved.plugin.hookspecs import SourceContext
from enclaved.plugin.manager import Plugins
from enclaved.plugin.model import ModelEntry

CPU = "cpu"
"""The one device for now: the processor with its memory."""
CATALOG_FILE = "catalog.sqlite"
FOLDERS_FILE = "folders.toml"
CATALOG_SECONDS_MAX = 1.0
"""What the catalog gets to write what it is at: a disk may not answer."""

logger = logging.getLogger("enclaved")


@dataclass(frozen=True)
class Daemon:
    """What it takes to build the daemon, and its whole life."""

    places: Places
    config: Config
    plugins: Plugins
    environment: Mapping[str, str]
    endpoint: str

    async def run(self, lock: HomeLock, ready: ReadyPipe) -> None:
        """Serves until a signal or a client says to end."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if hasattr(signal, "SIGIO"):
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # see `is_being_written`
        _seed_routing_ids()
        async with asyncio.TaskGroup() as tasks:
            started = time.time()
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            clock = SystemClock()
            supervisor = self._supervisor(loop)
            machine = read_machine()
            capacity = memory_limit_bytes(machine, self.config.table("memory", MemorySettings).limit_bytes)
            cores = usable_cores(machine, self.config.table("cpu", CpuSettings).cores_max)
            cpu = Device(DeviceId(CPU), capacity, cores)
            conductor = Conductor(State({cpu.id: cpu}, Limits()), Story(), clock, tasks)
            store = Store(self.places.data / CATALOG_FILE)
            headers = HeaderCache(supervisor.read_header, store, clock.wall)
            looker = self._looker(store, headers, clock)
            folders = Folders(self.places.config / FOLDERS_FILE, looker, store)
            folders.read()
            models = self._models(store, headers, looker, cores)
            workers = self.config.table("workers", WorkerSettings)
            hands = WorkerHands(models, supervisor, workers, clock, conductor.post, lambda: methods.looked())
            conductor.employ(hands)

            broker = Broker(
                context,
                lambda call: methods.handle(call),
                tasks,
                __version__,
                self.config.table("broker", BrokerSettings),
            )
            methods = Methods(
                identity=Identity(self.endpoint, str(self.places.home), _executable(), started),
                models=models,
                conductor=conductor,
                hands=hands,
                supervisor=supervisor,
                looker=looker,
                folders=folders,
                plugins=self.plugins.lines,
                clock=clock,
                sessions=lambda: broker.sessions,
                stop=stopping.set,
            )
            uid = os.getuid() if hasattr(os, "getuid") else None
            broker.bind(self.endpoint, pid=os.getpid(), uid=uid)
            tasks.create_task(conductor.run())
            write_state(
                self.places,
                DaemonState(os.getpid(), __version__, PROTOCOL_VERSION, self.endpoint, started, _executable()),
            )
            lock.is_ready()
            for line in self.plugins.lines:
                if line.state == "failed":
                    logger.warning("plugin %s %s", line.name, line.problem)
            ready.ready(self.endpoint, os.getpid())
            logger.info("enclaved %s serves %s", __version__, self.endpoint)
            supervisor.start_spare()
            tasks.create_task(looker.begin())
            await stopping.wait()
            logger.info("ending")
            conductor.post(ShutdownAsked("shutdown"))
            with suppress(TimeoutError):
                async with asyncio.timeout(workers.stop_seconds_max):
                    await conductor.wait_quiet()
            broker.end_calls(RefusalError("shutting_down", "The daemon is about to end."))
            await supervisor.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(CATALOG_SECONDS_MAX):
                    await looker.close()
                    await store.close()
            self.places.state_file.unlink(missing_ok=True)
            # Whatever still waits, such as for a disk that does not answer, waits for nobody any more.
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        broker.close()
        context.term()
        if (path := socket_path(self.endpoint)) is not None:
            path.unlink(missing_ok=True)
            remove_socket_folder(path, self.places)
        logger.info("ended")

    def _supervisor(self, loop: asyncio.AbstractEventLoop) -> Supervisor:
        return Supervisor(
            self.plugins.backends,
            self.config.table("workers", WorkerSettings),
            loop,
            environment=self.environment,
            private_folders=[str(Path.home()), str(self.places.home)],
            memory_file=self.places.data / "last_backend",
        )

    def _looker(self, store: Store, headers: HeaderCache, clock: Clock) -> Looker:
        def readers_of(entry: ModelEntry) -> list[str]:
            return header_readers_of(entry, self.plugins.backends)

        poll_seconds = self.config.table("catalog", CatalogSettings).poll_seconds
        sources = [
            (source, SourceContext(self.places.data / source.name, self._settings_of(source.name)))
            for source in self.plugins.sources
        ]
        return Looker(store, sources, headers, readers_of, clock.wall, poll_seconds)

    def _models(self, store: Store, headers: HeaderCache, looker: Looker, cores: int) -> Models:
        settings = self.config.table("", DaemonSettings)
        catalog = Catalog(store, looker, settings.aliases, settings.default_model)
        instances = self.config.table("instances", InstanceSettings)
        return Models(catalog, headers, self.plugins.backends, instances, device=CPU, cores=cores)

    def _settings_of(self, plugin: str) -> object | None:
        declared = self.plugins.settings.get(plugin)
        if declared is None:
            return None
        kind: type[object] = declared.settings
        return self.config.table(f"plugins.{plugin}", kind)


def _executable() -> str:
    return str(Path(sys.argv[0]).absolute())


def _seed_routing_ids() -> None:
    """libzmq numbers its peers from the C library's random generator, which starts alike in every process."""
    import ctypes

    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
