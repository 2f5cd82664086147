"""Children: started, talked to, watched, ended."""

from __future__ import annotations

from enclaved.daemon.supervisor.child import ChildEndedError, WallsMissingError
from enclaved.daemon.supervisor.supervisor import Supervisor, WorkerSettings
from enclaved.daemon.supervisor.worker import LoadRefusedError, Stream, Worker, WorkerDiedError

__all__ = [
    "ChildEndedError",
    "LoadRefusedError",
    "Stream",
    "Supervisor",
    "WallsMissingError",
    "Worker",
    "WorkerDiedError",
    "WorkerSettings",
]
