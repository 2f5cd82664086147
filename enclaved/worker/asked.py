"""What a request for text asks of the engine, once it has been read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from enclave.protocol.bodies import GenerateParams
from enclaved.plugin.engine import Sampling, Token


@dataclass(frozen=True)
class Asked:
    """A request for text."""

    params: GenerateParams
    prompt: list[Token] = field(repr=False)
    """At least one token, and one fewer than the context holds at most."""
    sampling: Sampling
    seed: int
    choices: int
    tokens_max: int
    """Of each answer."""
    ends_with_context: bool
    """Whether `tokens_max` is what the context leaves, and less than was asked for."""
    keep: int
    """Tokens at the beginning that a shift leaves."""
    left_out_tokens: int
    """Of the prompt."""
