"""Enclave's Python client: local AI models through the daemon `enclaved`.

    import enclave

    with enclave.Client(name="my-editor", priority="interactive") as client:
        for chunk in client.generate("tiny", "Once upon a time", max_tokens=64):
            print(chunk.text, end="")

Names are imported at their first use, so that `import enclave.protocol` brings in neither ZeroMQ nor the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclave.aio import AsyncClient as AsyncClient
    from enclave.aio import AsyncStream as AsyncStream
    from enclave.client import Client as Client
    from enclave.client import Stream as Stream
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
    from enclave.exceptions import EnclaveError as EnclaveError
    from enclave.exceptions import InstanceNotFoundError as InstanceNotFoundError
    from enclave.exceptions import InternalError as InternalError
    from enclave.exceptions import LoadFailedError as LoadFailedError
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
    from enclave.protocol.messages import Priority as Priority
    from enclave.protocol.messages import Progress as Progress
    from enclave.protocol.messages import Stage as Stage
    from enclave.protocol.methods import DaemonInfo as DaemonInfo
    from enclave.protocol.methods import EventChunk as EventChunk
    from enclave.protocol.methods import HealthResult as HealthResult
    from enclave.protocol.methods import InstanceInfo as InstanceInfo
    from enclave.protocol.methods import LoadResult as LoadResult
    from enclave.protocol.methods import MemoryInfo as MemoryInfo
    from enclave.protocol.methods import ModelHeaderInfo as ModelHeaderInfo
    from enclave.protocol.methods import ModelInfo as ModelInfo
    from enclave.protocol.methods import ModelShow as ModelShow
    from enclave.protocol.methods import PluginInfo as PluginInfo
    from enclave.protocol.methods import PullResult as PullResult
    from enclave.protocol.methods import TextChunk as TextChunk
    from enclave.protocol.methods import Timings as Timings
    from enclave.protocol.methods import Usage as Usage
    from enclave.protocol.methods import WhyRecord as WhyRecord
    from enclave.results import ChatResult as ChatResult
    from enclave.results import Embeddings as Embeddings
    from enclave.results import Receipt as Receipt
    from enclave.results import TextResult as TextResult

_HOMES = {
    "AsyncClient": "enclave.aio",
    "AsyncStream": "enclave.aio",
    "Client": "enclave.client",
    "Stream": "enclave.client",
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
    "DaemonInfo": "enclave.protocol.methods",
    "EventChunk": "enclave.protocol.methods",
    "HealthResult": "enclave.protocol.methods",
    "InstanceInfo": "enclave.protocol.methods",
    "LoadResult": "enclave.protocol.methods",
    "MemoryInfo": "enclave.protocol.methods",
    "ModelHeaderInfo": "enclave.protocol.methods",
    "ModelInfo": "enclave.protocol.methods",
    "ModelShow": "enclave.protocol.methods",
    "PluginInfo": "enclave.protocol.methods",
    "PullResult": "enclave.protocol.methods",
    "TextChunk": "enclave.protocol.methods",
    "Timings": "enclave.protocol.methods",
    "Usage": "enclave.protocol.methods",
    "WhyRecord": "enclave.protocol.methods",
    "ChatResult": "enclave.results",
    "Embeddings": "enclave.results",
    "Receipt": "enclave.results",
    "TextResult": "enclave.results",
}

__all__ = [  # noqa: RUF022  the clients first
    "AsyncClient",
    "AsyncStream",
    "Client",
    "Stream",
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
    "InstanceInfo",
    "LoadResult",
    "MemoryInfo",
    "ModelHeaderInfo",
    "ModelInfo",
    "ModelShow",
    "PluginInfo",
    "PullResult",
    "TextChunk",
    "Timings",
    "Usage",
    "WhyRecord",
    "ChatResult",
    "Embeddings",
    "Receipt",
    "TextResult",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
