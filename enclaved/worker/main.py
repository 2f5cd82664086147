"""A child's start and its life: walls first, then imports, then the channel.

Nothing of others is imported at the top of this module: it runs before the walls stand.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enclaved.sandbox.enter import SandboxError, Walls, enter
from enclaved.sandbox.profile import python_profile

if TYPE_CHECKING:
    from enclaved.link.messages import Load, ReadHeader, ToChild, UseVocabulary
    from enclaved.sandbox.tables import ChildKind
    from enclaved.worker.channel import Channel
    from enclaved.worker.loop import EngineLoop

GATHER_SECONDS = 0.01
"""Tokens that a fast model makes within it leave in one message: nobody sees the difference, and each message costs the
worker, the daemon and the client as much as some tokens."""
EXIT_SANDBOX_FAILED = 70
"""A wall that this system offers could not be put up; the reason is on stderr."""


@dataclass(frozen=True)
class Options:
    """What the launcher says on the command line, as one JSON object."""

    kind: ChildKind
    channel: int
    """Descriptor of the inherited socket."""
    parent: int
    """The daemon's pid."""
    prefixes: list[str]
    package_folders: list[str]
    private_folders: list[str]
    preload: list[str]


def main(options_json: str) -> None:
    """Runs a child until the daemon closes its channel."""
    options = Options(**json.loads(options_json))
    walls = _enter(options)
    # From here on code of others may be imported.
    from enclaved.link import LINK_VERSION
    from enclaved.link.messages import Hello
    from enclaved.worker.channel import Channel

    channel = Channel(socket.socket(fileno=options.channel))
    channel.send(Hello(LINK_VERSION, os.getpid(), walls.to_dict()))
    child = _Child(channel)
    threading.Thread(target=channel.receive_forever, args=(child.handle,), daemon=True).start()
    child.warm_up(options.preload)
    child.run()


def _enter(options: Options) -> Walls:
    profile = python_profile(
        options.kind,
        private_folders=options.private_folders,
        package_folders=options.package_folders,
        prefixes=options.prefixes,
    )
    try:
        return enter(profile, parent_pid=options.parent, descriptors=[options.channel])
    except SandboxError as error:
        print(f"the sandbox could not be put up: {error}", file=sys.stderr)
        sys.exit(EXIT_SANDBOX_FAILED)


class _Child:
    """Waits for what it is to do: to load a model and run it, or to read headers, or to answer with vocabularies."""

    def __init__(self, channel: Channel) -> None:
        from queue import SimpleQueue

        self._channel = channel
        self._jobs: SimpleQueue[tuple[Load | ReadHeader | UseVocabulary, list[int]]] = SimpleQueue()
        self._loop: EngineLoop | None = None
        self._early: list[Any] = []
        """Commands for the engine that came before it was there; the daemon only sends such after `Loaded`, except to
        set threads."""
        self._switching = threading.Lock()

    def handle(self, message: ToChild, descriptors: list[int]) -> None:
        """Takes a message in the reader thread; what takes long is left to the main thread."""
        from enclaved.link.messages import Load, Ping, Probe, Probed, ReadHeader, UseVocabulary

        match message:
            case Load() | ReadHeader() | UseVocabulary():
                self._jobs.put((message, descriptors))
            case Probe():
                from enclaved.sandbox.probes import run

                outcomes = run(message.names, message.targets)
                self._channel.send(Probed([outcome.to_dict() for outcome in outcomes]))
            case Ping():
                pass
            case _:
                with self._switching:
                    if self._loop is None:
                        self._early.append(message)
                    else:
                        self._loop.post(message)

    def warm_up(self, modules: list[str]) -> None:
        """Imports what a model will need, so that the next load does not wait for it."""
        import importlib

        from enclaved.link.messages import Warm

        problem = None
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                problem = f"{module} cannot be imported: {error}"
                break
        self._channel.send(Warm(problem))

    def run(self) -> None:
        """Works through the jobs; a `Load` is the last, since the model stays until the process ends."""
        from enclaved.link.messages import Load, UseVocabulary

        vocabularies = None
        while True:
            job, descriptors = self._jobs.get()
            if isinstance(job, Load):
                self._load_and_run(job, descriptors)
                return
            if isinstance(job, UseVocabulary):
                from enclaved.worker.vocabularies import Vocabularies

                vocabularies = vocabularies or Vocabularies()
                self._channel.send(vocabularies.answer(job, descriptors))
            else:
                from enclaved.worker.inspect import read_header

                self._channel.send(read_header(job, descriptors[0]))

    def _load_and_run(self, job: Load, descriptors: list[int]) -> None:
        from enclaved.link.messages import Loaded, LoadFailed
        from enclaved.plugin.engine import LoadError
        from enclaved.plugin.plain import to_plain
        from enclaved.worker.load import load_engine
        from enclaved.worker.loop import EngineLoop

        started = time.perf_counter()
        try:
            engine = load_engine(job, descriptors, self._channel.send)
        except (LoadError, ImportError) as error:
            out_of_memory = isinstance(error, LoadError) and error.out_of_memory
            self._channel.send(LoadFailed(str(error), out_of_memory))
            return
        except MemoryError:
            self._channel.send(LoadFailed("memory ran out while the model was being loaded", True))
            return
        loop = EngineLoop(
            engine, self._channel.send_all, time.perf_counter, reloaded=job.reloaded, gather_seconds=GATHER_SECONDS
        )
        with self._switching:
            for command in self._early:
                loop.post(command)
            self._early.clear()
            self._loop = loop
        seconds = time.perf_counter() - started
        self._channel.send(Loaded(to_plain(engine.memory()), to_plain(engine.capabilities), seconds))
        loop.run_forever()
