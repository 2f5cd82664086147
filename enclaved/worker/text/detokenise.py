"""The bytes of tokens to text, piece by piece, never splitting a character.

A token may hold part of a character, so bytes wait here until their character is whole.
"""

from __future__ import annotations

import codecs


class Detokeniser:
    """Feed it the pieces of one sequence in order. Bytes that can be no UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        """The characters that are complete now; often empty in the middle of one."""
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What is left: U+FFFD when the sequence ended inside a character."""
        return self._decoder.decode(b"", True)
