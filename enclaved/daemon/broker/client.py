"""Who asks: what a session says of itself, and what the system vouches for."""

from __future__ import annotations

from dataclasses import dataclass
from unicodedata import category

from enclave.protocol.messages import Priority
from enclaved.core.ids import ClientId

_BREAKING = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, lone surrogates and separators of lines. Joiners (Cf) belong to real
languages."""


def printable(text: str) -> str:
    """The text on one line and without control characters, for logs and terminals."""
    return "".join("\N{REPLACEMENT CHARACTER}" if category(each) in _BREAKING else each for each in text)


@dataclass(frozen=True)
class Client:
    """A session's other end."""

    id: ClientId
    name: str = ""
    """As it called itself; printable."""
    pid: int | None = None
    """As the system vouches for it, where it does; so with the program."""
    program: str | None = None
    """Its executable."""
    priority: Priority = Priority.NORMAL
    """Of its requests that don't say their own."""

    def __str__(self) -> str:
        """`my-editor (pid 4711, /usr/bin/python3)`, for people."""
        known = [f"pid {self.pid}"] if self.pid is not None else []
        known += [self.program] if self.program is not None else []
        return f"{self.name or 'unnamed'} ({', '.join(known)})" if known else self.name or "unnamed"
