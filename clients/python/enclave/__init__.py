"""Enclave's Python client: local AI models through the daemon `enclaved`.

    import enclave

    with enclave.Client(name="my-editor", priority="interactive") as client:
        for chunk in client.generate("tiny", "Once upon a time", max_tokens=64):
            print(chunk.text, end="")

Names are imported at their first use, so that `import enclave.protocol` brings in neither ZeroMQ nor the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from enclave.aio import AsyncClient as AsyncClient
    from enclave.aio_stream import AsyncStream as AsyncStream
    from enclave.calls import RequestOptions as RequestOptions
    from enclave.calls import SamplingOptions as SamplingOptions
    from enclave.client import Client as Client
    from enclave.exceptions import BackingOffError as BackingOffError
    from enclave.exceptions import BadConfigError as BadConfigError
    from enclave.exceptions import BadMessageError as BadMessageError
    from enclave.exceptions import BadModelFileError as BadModelFileError
    from enclave.exceptions import BadReferenceError as BadReferenceError
    from enclave.exceptions import BadRequestError as BadRequestError
    from enclave.exceptions import BusyError as BusyError
    from enclave.exceptions import CancelledError as CancelledError
    from enclave.exceptions import ConnectionLostError as ConnectionLostError
    from enclave.exceptions import ContextExceededError as ContextExceededError
    from enclave.exceptions import DaemonUnavailableError as DaemonUnavailableError
    from enclave.exceptions import DeadlineError as DeadlineError
    from enclave.exceptions import DiskFailedError as DiskFailedError
    from enclave.exceptions import EnclaveError as EnclaveError
    from enclave.exceptions import InstanceNotFoundError as InstanceNotFoundError
    from enclave.exceptions import InternalError as InternalError
    from enclave.exceptions import LoadFailedError as LoadFailedError
    from enclave.exceptions import LostRequest as LostRequest
    from enclave.exceptions import ModelNotFoundError as ModelNotFoundError
    from enclave.exceptions import ModelUnreadableError as ModelUnreadableError
    from enclave.exceptions import NoBackendError as NoBackendError
    from enclave.exceptions import OutOfMemoryError as OutOfMemoryError
    from enclave.exceptions import ShuttingDownError as ShuttingDownError
    from enclave.exceptions import TooLargeError as TooLargeError
    from enclave.exceptions import UnauthorisedError as UnauthorisedError
    from enclave.exceptions import UnknownMethodError as UnknownMethodError
    from enclave.exceptions import UnsupportedError as UnsupportedError
    from enclave.exceptions import UnsupportedModelError as UnsupportedModelError
    from enclave.exceptions import VersionMismatchError as VersionMismatchError
    from enclave.exceptions import WorkerDiedError as WorkerDiedError
    from enclave.protocol.bodies import AskerInfo as AskerInfo
    from enclave.protocol.bodies import DaemonInfo as DaemonInfo
    from enclave.protocol.bodies import EventChunk as EventChunk
    from enclave.protocol.bodies import HealthResult as HealthResult
    from enclave.protocol.bodies import InstanceInfo as InstanceInfo
    from enclave.protocol.bodies import LoadResult as LoadResult
    from enclave.protocol.bodies import MemoryInfo as MemoryInfo
    from enclave.protocol.bodies import ModelHeaderInfo as ModelHeaderInfo
    from enclave.protocol.bodies import ModelInfo as ModelInfo
    from enclave.protocol.bodies import ModelShow as ModelShow
    from enclave.protocol.bodies import PluginInfo as PluginInfo
    from enclave.protocol.bodies import PullResult as PullResult
    from enclave.protocol.bodies import TextChunk as TextChunk
    from enclave.protocol.bodies import Timings as Timings
    from enclave.protocol.bodies import TokenChoice as TokenChoice
    from enclave.protocol.bodies import TokenLogprob as TokenLogprob
    from enclave.protocol.bodies import UnloadResult as UnloadResult
    from enclave.protocol.bodies import Usage as Usage
    from enclave.protocol.bodies import WallsInfo as WallsInfo
    from enclave.protocol.bodies import WhyRecord as WhyRecord
    from enclave.protocol.folder_bodies import FolderInfo as FolderInfo
    from enclave.protocol.messages import Priority as Priority
    from enclave.protocol.messages import Progress as Progress
    from enclave.protocol.messages import Stage as Stage
    from enclave.results import ChatResult as ChatResult
    from enclave.results import Embeddings as Embeddings
    from enclave.results import Prefilled as Prefilled
    from enclave.results import Ranking as Ranking
    from enclave.results import Receipt as Receipt
    from enclave.results import TextResult as TextResult
    from enclave.stream import Stream as Stream

_HOMES = {
    "AsyncClient": "enclave.aio",
    "AsyncStream": "enclave.aio_stream",
    "Client": "enclave.client",
    "Stream": "enclave.stream",
    "RequestOptions": "enclave.calls",
    "SamplingOptions": "enclave.calls",
    "DiskFailedError": "enclave.exceptions",
    "EnclaveError": "enclave.exceptions",
    "BadMessageError": "enclave.exceptions",
    "BadRequestError": "enclave.exceptions",
    "VersionMismatchError": "enclave.exceptions",
    "UnauthorisedError": "enclave.exceptions",
    "UnknownMethodError": "enclave.exceptions",
    "UnsupportedError": "enclave.exceptions",
    "ModelNotFoundError": "enclave.exceptions",
    "BadReferenceError": "enclave.exceptions",
    "ModelUnreadableError": "enclave.exceptions",
    "BadModelFileError": "enclave.exceptions",
    "UnsupportedModelError": "enclave.exceptions",
    "NoBackendError": "enclave.exceptions",
    "LoadFailedError": "enclave.exceptions",
    "LostRequest": "enclave.exceptions",
    "OutOfMemoryError": "enclave.exceptions",
    "ContextExceededError": "enclave.exceptions",
    "BusyError": "enclave.exceptions",
    "DeadlineError": "enclave.exceptions",
    "CancelledError": "enclave.exceptions",
    "WorkerDiedError": "enclave.exceptions",
    "BackingOffError": "enclave.exceptions",
    "ShuttingDownError": "enclave.exceptions",
    "TooLargeError": "enclave.exceptions",
    "InstanceNotFoundError": "enclave.exceptions",
    "InternalError": "enclave.exceptions",
    "BadConfigError": "enclave.exceptions",
    "ConnectionLostError": "enclave.exceptions",
    "DaemonUnavailableError": "enclave.exceptions",
    "Priority": "enclave.protocol.messages",
    "Progress": "enclave.protocol.messages",
    "Stage": "enclave.protocol.messages",
    "DaemonInfo": "enclave.protocol.bodies",
    "EventChunk": "enclave.protocol.bodies",
    "HealthResult": "enclave.protocol.bodies",
    "AskerInfo": "enclave.protocol.bodies",
    "InstanceInfo": "enclave.protocol.bodies",
    "LoadResult": "enclave.protocol.bodies",
    "MemoryInfo": "enclave.protocol.bodies",
    "ModelHeaderInfo": "enclave.protocol.bodies",
    "FolderInfo": "enclave.protocol.folder_bodies",
    "ModelInfo": "enclave.protocol.bodies",
    "ModelShow": "enclave.protocol.bodies",
    "PluginInfo": "enclave.protocol.bodies",
    "PullResult": "enclave.protocol.bodies",
    "TextChunk": "enclave.protocol.bodies",
    "Timings": "enclave.protocol.bodies",
    "TokenChoice": "enclave.protocol.bodies",
    "TokenLogprob": "enclave.protocol.bodies",
    "UnloadResult": "enclave.protocol.bodies",
    "Usage": "enclave.protocol.bodies",
    "WallsInfo": "enclave.protocol.bodies",
    "WhyRecord": "enclave.protocol.bodies",
    "ChatResult": "enclave.results",
    "Embeddings": "enclave.results",
    "Prefilled": "enclave.results",
    "Ranking": "enclave.results",
    "Receipt": "enclave.results",
    "TextResult": "enclave.results",
}

__all__ = [  # noqa: RUF022  the clients first
    "AsyncClient",
    "AsyncStream",
    "Client",
    "Stream",
    "RequestOptions",
    "SamplingOptions",
    "DiskFailedError",
    "EnclaveError",
    "BadMessageError",
    "BadRequestError",
    "VersionMismatchError",
    "UnauthorisedError",
    "UnknownMethodError",
    "UnsupportedError",
    "ModelNotFoundError",
    "BadReferenceError",
    "ModelUnreadableError",
    "BadModelFileError",
    "UnsupportedModelError",
    "NoBackendError",
    "LoadFailedError",
    "OutOfMemoryError",
    "ContextExceededError",
    "BusyError",
    "DeadlineError",
    "CancelledError",
    "WorkerDiedError",
    "BackingOffError",
    "ShuttingDownError",
    "TooLargeError",
    "InstanceNotFoundError",
    "InternalError",
    "BadConfigError",
    "ConnectionLostError",
    "DaemonUnavailableError",
    "Priority",
    "Progress",
    "Stage",
    "DaemonInfo",
    "EventChunk",
    "HealthResult",
    "AskerInfo",
    "InstanceInfo",
    "LoadResult",
    "MemoryInfo",
    "ModelHeaderInfo",
    "FolderInfo",
    "ModelInfo",
    "ModelShow",
    "PluginInfo",
    "PullResult",
    "TextChunk",
    "Timings",
    "TokenChoice",
    "TokenLogprob",
    "UnloadResult",
    "Usage",
    "WallsInfo",
    "WhyRecord",
    "ChatResult",
    "Embeddings",
    "LostRequest",
    "Prefilled",
    "Ranking",
    "Receipt",
    "TextResult",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
