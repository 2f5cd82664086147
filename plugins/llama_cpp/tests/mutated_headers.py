"""Reads mutated GGUF headers in a process of its own, whose memory and time are bounded by the system.

    python -m plugins.llama_cpp.tests.mutated_headers SEED COUNT

It prints one JSON document with what became of them. A header that takes longer than a second or more memory than
allowed, or ends in anything but a header or a HeaderError, ends the process and names the seed and number that made it.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType

from enclave_llama_cpp.gguf import read_header
from enclaved.plugin.model import HeaderError
from plugins.llama_cpp.tests.tiny_gguf import Gguf, tiny_bert, tiny_llama

MEMORY_BYTES_MAX = 256 * 2**20
SECONDS_MAX = 1.0
HEADER_SHARE = 0.98
"""Of the mutations, so many hit the header; the others hit the tensors behind it."""
_NUMBERS = (0, 1, 2, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _number(chance: random.Random) -> int:
    return chance.choice(_NUMBERS) if chance.random() < 0.7 else chance.getrandbits(chance.choice((8, 16, 32, 64)))


def _change_byte(content: bytearray, spot: int, chance: random.Random) -> None:
    content[spot : spot + 1] = bytes([chance.getrandbits(8)])


def _flip_bit(content: bytearray, spot: int, chance: random.Random) -> None:
    if spot < len(content):
        content[spot] ^= 1 << chance.randrange(8)


def _put_number(content: bytearray, spot: int, chance: random.Random) -> None:
    shape = chance.choice(("<I", "<Q"))
    raw = struct.pack(shape, _number(chance) & (2 ** (8 * struct.calcsize(shape)) - 1))
    content[spot : spot + len(raw)] = raw


def _insert(content: bytearray, spot: int, chance: random.Random) -> None:
    content[spot:spot] = struct.pack("<Q", _number(chance))


def _cut_out(content: bytearray, spot: int, chance: random.Random) -> None:
    del content[spot : spot + chance.choice((1, 4, 8, 100))]


def _repeat(content: bytearray, spot: int, chance: random.Random) -> None:
    content[spot:spot] = content[spot : spot + chance.choice((8, 40, 400))]


def _end(content: bytearray, spot: int, _: random.Random) -> None:
    del content[spot:]


_MUTATIONS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _change_byte,
    _flip_bit,
    _put_number,
    _put_number,
    _insert,
    _cut_out,
    _repeat,
    _end,
)


def _base(model: Gguf) -> tuple[bytes, int]:
    """A whole file, and where its header ends."""
    content = model.encode()
    return content, len(content) - sum(len(tensor.data) for tensor in model.tensors)


def main(seed: int, count: int) -> None:
    """Reads so many mutated headers and tells what became of them."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    bases = [_base(tiny_llama()), _base(tiny_bert()), _base(tiny_bert(ranks=True))]
    told: dict[str, int] = {"headers": 0, "reasons": 0}
    different: set[str] = set()
    slowest = 0.0

    def took_too_long(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"a header took longer than {SECONDS_MAX} s")

    signal.signal(signal.SIGVTALRM, took_too_long)
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        original, header_end = chance.choice(bases)
        content = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 3, 6))):
            spot = chance.randrange(header_end) if chance.random() < HEADER_SHARE else chance.randrange(len(original))
            chance.choice(_MUTATIONS)(content, spot, chance)
        size_bytes = len(content) if chance.random() < 0.95 else _number(chance)
        began = time.thread_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_MAX)
        try:
            header = read_header(io.BytesIO(bytes(content)), size_bytes)
            assert header.weights_bytes <= size_bytes, "more tensors than file"
            told["headers"] += 1
        except HeaderError as error:
            told["reasons"] += 1
            different.add(str(error).split(":")[0][:24])
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}")
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        slowest = max(slowest, time.thread_time() - began)
    print(json.dumps({**told, "different": len(different), "slowest_seconds": slowest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
