"""The program `enclaved`: options, home, plugins and configuration; then the daemon itself."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq

from enclave.paths import PathError, Places, choose_endpoint, places
from enclaved import __version__
from enclaved.daemon.app import Daemon
from enclaved.daemon.broker import BrokerSettings
from enclaved.daemon.catalog import CatalogSettings
from enclaved.daemon.config import Config, ConfigError, DaemonSettings, load_config
from enclaved.daemon.hardware import CpuSettings, MemorySettings
from enclaved.daemon.needs import InstanceSettings
from enclaved.daemon.observe import LogSettings, open_log
from enclaved.daemon.startup import (
    AlreadyRunningError,
    HomeLock,
    ReadyPipe,
    make_data_folder,
    raise_descriptor_limit,
    ready_pipe,
    remove_stale_socket,
)
from enclaved.daemon.supervisor import WorkerSettings
from enclaved.plugin.manager import Plugins, load_plugins
from enclaved.sandbox.lookers import shut_lookers_out

THREAD_NAME = "enclaved-wait"
THREADS_SECONDS_MAX = 1.0
"""What a disk or a plugin gets to finish what nobody waits for any more."""
SWITCH_SECONDS = 0.0001
"""For so long a thread that computes may keep the one that serves clients waiting."""
GARBAGE_THRESHOLDS = (700, 10, 1000)
"""A collection of everything, which keeps all threads waiting (50 ms with a catalog of ten thousand models), is to be
rare; what is young is collected as always."""
EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3
TABLES: Mapping[str, type] = {
    "": DaemonSettings,
    "broker": BrokerSettings,
    "catalog": CatalogSettings,
    "cpu": CpuSettings,
    "instances": InstanceSettings,
    "log": LogSettings,
    "memory": MemorySettings,
    "workers": WorkerSettings,
}
"""The tables of the configuration; each plugin adds its own below `plugins`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `enclaved`."""
    parser = argparse.ArgumentParser(prog="enclaved", description="Owns the local models and serves them to clients.")
    parser.add_argument("--version", action="version", version=f"enclaved {__version__}")
    parser.add_argument("--only", metavar="A,B", help="load only these plugins")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with ready_pipe(options.ready_fd) as ready:
        sys.exit(_start(options, ready))


def _start(options: argparse.Namespace, ready: ReadyPipe) -> int:
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    environment = dict(os.environ)
    if options.log_level:
        environment["ENCLAVE_LOG_LEVEL"] = options.log_level
    where = places(environment)
    try:
        shut_lookers_out()
        raise_descriptor_limit()
        lock = HomeLock(where)
        plugins = load_plugins(options.only.split(",") if options.only else None, environment=environment)
        config = read_config(where, plugins, environment)
        make_data_folder(where.data)
        remove_stale_socket(where)
        endpoint = choose_endpoint(where, environment)
    except AlreadyRunningError as running:
        print(f"{running}\n{running.hint}".strip(), file=sys.stderr)
        if running.endpoint is not None and running.pid is not None:
            ready.ready(running.endpoint, running.pid)
        return EXIT_ALREADY_RUNNING
    except (ConfigError, PathError) as error:
        print(f"enclaved: {error}\n{error.hint}".strip(), file=sys.stderr)
        ready.failed(getattr(error, "code", "daemon_unavailable"), str(error), error.hint)
        return EXIT_FAILED
    except OSError as error:
        print(f"enclaved: {error}", file=sys.stderr)
        ready.failed("daemon_unavailable", str(error))
        return EXIT_FAILED
    open_log(config.table("log", LogSettings))
    failed = False
    try:
        _run(Daemon(where, config, plugins, environment, endpoint).run(lock, ready))
    except* (OSError, zmq.ZMQError) as group:
        # Such as an address that cannot be bound, or a disk that is full.
        failed = True
        reason = "; ".join(map(str, group.exceptions))
        print(f"enclaved: {reason}", file=sys.stderr)
        ready.failed("daemon_unavailable", reason)
    return EXIT_FAILED if failed else 0


def _run(life: Coroutine[Any, Any, None]) -> None:
    """Like asyncio.run, but waits for no thread that a disk or a plugin holds."""
    threads = ThreadPoolExecutor(thread_name_prefix=THREAD_NAME)
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(threads)
        runner.run(life)
        threads.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + THREADS_SECONDS_MAX
        ours = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
        for thread in ours:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in ours):
            print("enclaved: ended although a file system or a plugin does not answer", file=sys.stderr, flush=True)
            os._exit(0)


def read_config(where: Places, plugins: Plugins, environment: Mapping[str, str]) -> Config:
    """The configuration file, or the defaults where there is none. Raises ConfigError."""
    declared = dict(TABLES) | {f"plugins.{name}": table.settings for name, table in plugins.settings.items()}
    try:
        text = where.config_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise ConfigError(f"{where.config_file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where.config_file} is no UTF-8 text", f"Look at byte {error.start}.") from error
    return load_config(text, environment, declared, str(where.config_file))
