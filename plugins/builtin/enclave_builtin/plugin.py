"""The source `builtin`: the one model that is always there, so that Enclave answers something before any download.

The model's file is made on this machine when it is first needed, by `enclave_builtin.random_model`, and made again when
it is damaged. Several daemons and threads may do so at once: each writes a file of its own and renames it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from enclaved.plugin.hookspecs import Source, SourceContext, hookimpl
from enclaved.plugin.model import ModelEntry, ModelFile, ModelName

ENCLAVE_API_VERSION = 1

MODEL_NAME = "tiny"
FILE_NAME = "tiny.gguf"
FILE_BYTES = 1_131_232
FILE_SHA256 = "37260d9f1dc5695376494fdf940b36abdebc0af22898221f9eec3543bdaf84a8"
"""Of the file that `make_random_model` makes, on every machine."""

_PREFIX = "builtin:"


class BuiltinSource(Source):
    """Offers `tiny`, also as `builtin:tiny`."""

    name = "builtin"

    def __init__(self) -> None:
        self._writing = Lock()
        self._sound: tuple[str, int, int, int] | None = None
        """Path, size, time of change and inode of the file whose hash was right when last looked at."""

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        """The one model; none when its file is missing and cannot be written, `resolve` then says why."""
        try:
            return [self._entry(context)]
        except OSError:
            return []

    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        """See `Source.resolve`. Raises OSError when the model's file is missing and cannot be written."""
        if reference == MODEL_NAME or reference == _PREFIX + MODEL_NAME:
            return self._entry(context)
        if reference.startswith(_PREFIX):
            raise LookupError(f"there is no built-in model {reference.removeprefix(_PREFIX)!r}; there is {MODEL_NAME}")
        return None

    def _entry(self, context: SourceContext) -> ModelEntry:
        path = context.data_folder.absolute() / FILE_NAME
        try:
            self._ensure(path)
        except OSError as error:
            reason = f"the built-in model cannot be written to {path.parent}: {error.strerror}"
            raise OSError(error.errno, reason) from error
        return ModelEntry(
            name=ModelName(MODEL_NAME),
            source=self.name,
            files=(ModelFile("weights", str(path)),),
            note="Its weights are random: it shows that everything works, and makes no sense.",
        )

    def _ensure(self, path: Path) -> None:
        """Leaves the file there as it should be. Raises OSError.

        One thread at a time: a file that is replaced is another model to the daemon.
        """
        with self._writing:
            self._ensure_alone(path)

    def _ensure_alone(self, path: Path) -> None:
        with suppress(OSError):
            identity = _identity(path)
            if identity == self._sound or _is_sound(path):
                self._sound = identity
                return
        # Only here: a daemon needs them once.
        from enclave_builtin.random_model import make_random_model
        from enclave_builtin.whole_file import write_whole

        write_whole(path, make_random_model())
        self._sound = _identity(path)


def _is_sound(path: Path) -> bool:
    """Whether the file is the one that would be made. Raises OSError."""
    return path.stat().st_size == FILE_BYTES and hashlib.sha256(path.read_bytes()).hexdigest() == FILE_SHA256


def _identity(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino


@hookimpl
def enclave_sources() -> list[Source]:
    return [BuiltinSource()]
