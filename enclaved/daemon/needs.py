"""From a model and a request's wishes to what its instance would take: backend, placement, memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from enclaved.core.events import Need, Wish
from enclaved.core.ids import DeviceId, ModelKey
from enclaved.daemon.config import setting
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.engine import Placement
from enclaved.plugin.hookspecs import Backend
from enclaved.plugin.model import ModelEntry, ModelHeader

BYTES_MAX = 2**50
"""A PiB: an estimate above it, or below 0, comes from a header that lies."""
KV_TYPES = ("f32", "f16", "q8_0")
WEIGHTS_BYTES_A_THREAD = 16 * 2**20
CONTEXT_UNKNOWN = 2048
"""For a model that does not say what it was trained for."""


@dataclass(frozen=True)
class InstanceSettings:
    """The table `[instances]`: what an instance gets when the request does not say."""

    context: int = setting(
        4096, "Tokens of context for each sequence, if the model was trained for so many.", minimum=1, maximum=2**31 - 1
    )
    sequences: int = setting(4, "Requests that run at once on one instance.", minimum=1, maximum=65_536)
    kv_type: Literal["f32", "f16", "q8_0"] = setting("f16", "The type of the key/value cache.")


def choose_backend(entry: ModelEntry, backends: Mapping[str, Backend], wanted: str | None) -> Backend:
    """The backend that runs a model: the one asked for, else the first that may.

    Raises RefusalError: `no_backend`, `unsupported_model`.
    """
    if wanted is not None and wanted not in backends:
        raise RefusalError("no_backend", f"there is no backend {wanted!r}; installed: {', '.join(backends) or 'none'}")
    fit = backends_of(entry, backends)
    if wanted is not None and wanted not in fit:
        others = (
            f"leave --backend out, or name one of {', '.join(fit)}" if fit else "`enclave plugins` shows the others"
        )
        raise RefusalError(
            "unsupported_model",
            f"the backend {wanted} does not run {entry.name}",
            hint=f"{others[0].upper()}{others[1:]}.",
        )
    if not fit:
        raise RefusalError("no_backend", f"no installed backend runs {entry.name}")
    return backends[wanted or fit[0]]


def backends_of(entry: ModelEntry, backends: Mapping[str, Backend]) -> list[str]:
    """The names of the installed backends that may run a model, by its entry or its first file's name."""
    return backends_for(entry.backends, entry.files[0].path if entry.files else None, backends)


def header_readers_of(entry: ModelEntry, backends: Mapping[str, Backend]) -> list[str]:
    """What may read a model's header: `module:function` of each backend that may run it."""
    readers = (backends[name].header_reader for name in backends_of(entry, backends))
    return list(dict.fromkeys(reader for reader in readers if reader is not None))


def backends_for(only: Sequence[str], path: str | None, backends: Mapping[str, Backend]) -> list[str]:
    """The names of the installed backends that may run a model: of `only`, else by the name of its first file."""
    if only or path is None:
        return [name for name in only if name in backends]
    file_name = path.rpartition("/")[2]
    return [name for name, backend in backends.items() if _recognises(backend, file_name)]


def _recognises(backend: Backend, file_name: str) -> bool:
    try:
        return backend.recognises(file_name)
    except Exception:  # noqa: BLE001 - a plugin's defect; the other backends' models can be run all the same
        return False


def threads_useful(header: ModelHeader) -> int:
    """Compute threads from which on more do not make a model faster.

    With a few megabytes a thread, the threads wait for each other longer than they compute; and when another program
    takes a core away, they wait for it at each of a model's hundreds of steps.
    """
    return max(1, header.weights_bytes // WEIGHTS_BYTES_A_THREAD)


def placement_for(header: ModelHeader, wish: Wish, settings: InstanceSettings, device: str, cores: int) -> Placement:
    """What an instance gets: the wish, where it says something, else the settings within what the model can.

    Raises RefusalError (`bad_request`) for a wish that no instance could fulfil.
    """
    trained = header.context_length if header.context_length and header.context_length > 0 else CONTEXT_UNKNOWN
    if wish.context is not None and wish.context > trained:
        raise RefusalError(
            "bad_request",
            f"a context of {wish.context} is more than the {trained} tokens that this model was trained for",
            hint=f"Ask for at most {trained}.",
            numbers={"context": wish.context, "context_max": trained},
        )
    kv_type = wish.kv_type or settings.kv_type
    if kv_type not in KV_TYPES:
        raise RefusalError("bad_request", f"kv_type {kv_type!r} is none of {', '.join(KV_TYPES)}")
    return Placement(
        device=device,
        context=wish.context or min(trained, settings.context),
        sequences=wish.sequences or settings.sequences,
        threads=max(1, min(wish.threads or threads_useful(header), cores)),
        kv_type=kv_type,
        flash_attention=wish.flash_attention,
    )


def need_of(model: ModelKey, name: str, backend: Backend, header: ModelHeader, placement: Placement) -> Need:
    """What the core books for an instance.

    Raises RefusalError: `unsupported_model` where the backend says no, `bad_model_file` where a header that came from a
    hostile file leads it to nonsense.
    """
    try:
        refused = backend.refuse(header)
        if refused is not None:
            raise RefusalError("unsupported_model", f"{name}: {refused}", hint="Choose another model.")
        bytes_estimated = backend.estimate(header, placement).total_bytes
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise RefusalError("bad_model_file", f"{name}: its header makes no sense ({type(error).__name__})") from error
    if not 0 <= bytes_estimated <= BYTES_MAX:
        raise RefusalError(
            "bad_model_file", f"{name}: its header makes no sense: it would need {bytes_estimated:,} bytes"
        )
    return Need(
        model=model,
        device=DeviceId(placement.device),
        context=placement.context,
        sequences=placement.sequences,
        kv_type=placement.kv_type,
        flash_attention=placement.flash_attention,
        bytes_estimated=backend.process_bytes + bytes_estimated,
        threads_max=placement.threads,
    )
