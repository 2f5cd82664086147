"""Tokens as llama.cpp's samplers take them: an array of ids, logits and probabilities."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from enclaved.plugin.engine import EngineError

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`struct llama_token_data`."""


def applied(chain: Any, candidates: NDArray[Any]) -> NDArray[Any]:
    """What a sampler leaves of the candidates, in its order. The array given is overwritten.

    Raises EngineError when there are none: llama.cpp would end the process.
    """
    if not len(candidates):
        raise EngineError("there is no token to choose from")
    array = llama_cpp.llama_token_data_array(
        data=ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p),
        size=len(candidates),
        selected=-1,
        sorted=False,
    )
    llama_cpp.llama_sampler_apply(chain, cast("Any", ctypes.byref(array)))
    # Filters work in place, except that the interface lets one bring an array of its own: read where it points.
    address = ctypes.cast(array.data, ctypes.c_void_p).value or 0
    return np.frombuffer(ctypes.string_at(address, array.size * CANDIDATE.itemsize), CANDIDATE)
