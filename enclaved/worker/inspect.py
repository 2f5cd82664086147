"""The inspector: reads headers of model files, which may be hostile, with the readers that backends name."""

from __future__ import annotations

import os
from collections.abc import Callable

from enclaved.link.messages import FromChild, HeaderRead, HeaderRefused, ReadHeader
from enclaved.link.packing import pack
from enclaved.plugin.model import HEADER_BYTES_MAX, CutOffError, HeaderError
from enclaved.plugin.plain import to_plain
from enclaved.worker.heavy import load_attribute

REASON_CHARACTERS_MAX = 1000
"""Of a refusal: a sentence or two."""


def read_header(job: ReadHeader, descriptor: int) -> FromChild:
    """Reads the header of an open file with the backend's reader, and closes the file."""
    with os.fdopen(descriptor, "rb") as file:
        try:
            reader: Callable[..., object] = load_attribute(job.reader)
            header = to_plain(reader(file, os.fstat(file.fileno()).st_size))
            size_bytes = len(pack(header))
        except CutOffError as error:
            return _refused(job, str(error), "cut_off")
        except HeaderError as error:
            return _refused(job, str(error), "no_model")
        except (ImportError, MemoryError, OSError) as error:
            return _refused(job, str(error), "trouble")
        except Exception as error:  # noqa: BLE001
            # A reader should map these; a hostile file that finds a gap in it is refused all the same.
            return _refused(job, f"the header cannot be read ({type(error).__name__})", "no_model")
    if size_bytes > HEADER_BYTES_MAX:
        return _refused(job, f"the header is larger than {HEADER_BYTES_MAX} bytes", "no_model")
    return HeaderRead(job.job, header)


def _refused(job: ReadHeader, reason: str, kind: str) -> HeaderRefused:
    return HeaderRefused(job.job, shown(reason or "the header cannot be read"), kind)


def shown(reason: str) -> str:
    """A reason as it may leave the process: it may quote the file, whose texts need not be short or Unicode."""
    return reason[:REASON_CHARACTERS_MAX].encode("utf-8", "replace").decode()
