"""The fake model's knobs: what they are called, their bounds, and how a reference spells them.

The source reads them from a reference, the engine from the settings of its load request; both through here, so a knob
has one definition. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote

KnobValue: TypeAlias = str | int | float | bool

Mode: TypeAlias = Literal["count", "echo", "body"]

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SECONDS_MAX = 86_400
_BYTES_MAX = 2**50
_TEXT_CHARACTERS_MAX = 4_096
"""A reference is short enough for a command line."""


@dataclass(frozen=True)
class Knobs:
    """Everything that can be asked of a fake model. The defaults make a small, fast model without faults."""

    load_seconds: float = 0.0
    tokens_per_second: float = 0.0
    """Speed of generating, of a step: a batch takes as long as one sequence. 0: as fast as possible."""
    prompt_tokens_per_second: float = 0.0
    """Speed of reading prompts. 0: as fast as possible."""
    bytes: int = 64 * 2**20
    """What its weights are said to need, and what it says it holds."""
    kv_bytes: int = 0
    """What a token of context needs beside."""
    measured_bytes: int = 0
    """What it says it holds once loaded, whatever it needed before. 0: the truth."""
    crash_at_token: int = 0
    """The process kills itself when this token of all it generates is due, counted from 1. 0: never."""
    crash_at_load: bool = False
    """The process kills itself halfway through loading."""
    load_fails: str = ""
    """Loading fails with this text."""
    out_of_memory_loads: int = 0
    """The first so many loads of this model in a process fail for lack of memory."""
    out_of_memory_above: int = 0
    """Loading fails for lack of memory when the placement needs more bytes than this, in any process. 0: never."""
    never_answer: bool = False
    """Each step blocks until it is interrupted."""
    deaf: bool = False
    """Interrupting does nothing."""
    mode: Mode = "count"
    """`count` answers "1 2 3 …" without end; `echo` answers the prompt, then ends; `body` answers the very bytes of the
    request's body, whatever they are, then ends."""
    text: str = ""
    """Answers this text, then ends, whatever the mode."""
    context: int = 4096
    """Tokens the model was trained for: more than that is not given."""
    sequences: int = 64
    """Sequences at once at most."""
    batch_tokens: int = 512
    """Tokens that a step may carry."""
    cells: int = 0
    """Tokens that all sequences may hold together. 0: as many as their contexts."""
    trim: bool = True
    """Whether a sequence can be cut back, shared and shifted, so that prompts are cached."""


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "load_seconds": (0, _SECONDS_MAX),
    "tokens_per_second": (0, 1e9),
    "prompt_tokens_per_second": (0, 1e9),
    "bytes": (0, _BYTES_MAX),
    "kv_bytes": (0, _BYTES_MAX),
    "measured_bytes": (0, _BYTES_MAX),
    "crash_at_token": (0, 2**31),
    "out_of_memory_loads": (0, 2**31),
    "out_of_memory_above": (0, _BYTES_MAX),
    "context": (1, 2**24),
    "sequences": (1, 256),
    "batch_tokens": (1, 2**20),
    "cells": (0, 2**30),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"mode": ("count", "echo", "body")}
_DEFAULTS: Mapping[str, KnobValue] = dataclasses.asdict(Knobs())


def parse_knobs(pairs: Iterable[tuple[str, str]]) -> dict[str, KnobValue]:
    """Values by knob, from the pairs of a reference. Sizes may end in KiB, MiB, GiB or TiB.

    Raises ValueError, with a sentence for a person, for an unknown or repeated knob and a value that it cannot take.
    """
    knobs: dict[str, KnobValue] = {}
    for name, text in pairs:
        if name not in _DEFAULTS:
            raise ValueError(_unknown(name))
        if name in knobs:
            raise ValueError(f"the knob {name} is given twice")
        knobs[name] = _checked(name, _parsed(name, text))
    return knobs


def knobs_of(settings: Mapping[str, KnobValue]) -> Knobs:
    """The knobs in the settings of a load request. Raises ValueError as `parse_knobs` does."""
    for name in settings:
        if name not in _DEFAULTS:
            raise ValueError(_unknown(name))
    values: dict[str, KnobValue] = {name: _checked(name, value) for name, value in settings.items()}
    return dataclasses.replace(Knobs(), **values)  # pyright: ignore[reportArgumentType]  # _checked saw to the types


def spell_knobs(knobs: Mapping[str, KnobValue]) -> str:
    """`a=1&b=2`: knobs in the order of their names, those at their default left out, so that one model has one name."""
    return "&".join(
        f"{name}={quote(_spelled(value), safe='')}" for name, value in sorted(knobs.items()) if value != _DEFAULTS[name]
    )


def _spelled(value: KnobValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _parsed(name: str, text: str) -> KnobValue:
    kind: KnobValue = _DEFAULTS[name]
    try:
        if isinstance(kind, bool):
            return _SWITCH[text.lower()]
        if isinstance(kind, int):
            unit = _UNITS.get(text[-3:], 1)
            return int(text[:-3] if unit > 1 else text) * unit
        return float(text) if isinstance(kind, float) else text
    except (KeyError, ValueError):
        wanted = (
            "true or false" if isinstance(kind, bool) else "a whole number" if isinstance(kind, int) else "a number"
        )
        raise ValueError(f"the knob {name} takes {wanted}, not {text!r}") from None


def _checked(name: str, value: KnobValue) -> KnobValue:
    default: KnobValue = _DEFAULTS[name]
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"the knob {name} takes a {type(default).__name__}, not {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"the knob {name} takes {' or '.join(_CHOICES[name])}, not {value!r}")
    if isinstance(value, str):
        if len(value) > _TEXT_CHARACTERS_MAX:
            raise ValueError(f"the knob {name} takes at most {_TEXT_CHARACTERS_MAX} characters")
    elif name in _BOUNDS:
        least, most = _BOUNDS[name]
        if not least <= value <= most:
            raise ValueError(f"the knob {name} takes {least:g} to {most:g}, not {value}")
    return value


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, _DEFAULTS, n=1, cutoff=0.0)[0]
    return f"there is no knob {name!r}; the nearest is {near}, all are: {', '.join(_DEFAULTS)}"
