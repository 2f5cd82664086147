"""Makes the built-in model: a small Llama of random weights that answers with words, in no order.

`make_random_model` is the same function of nothing on every machine. The source calls it when the model's file is
missing; it never touches the disk.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable

from enclave_builtin.gguf import Tensor, Value, gguf_bytes

SEED = 20_251
EMBEDDING_LENGTH = 64
BLOCK_COUNT = 3
FEED_FORWARD_LENGTH = 176
HEAD_COUNT = 4
HEAD_COUNT_KV = 2
CONTEXT_LENGTH = 2048

SPACE = "\u2581"
"""How a SentencePiece vocabulary writes a space."""

SPECIALS = ("<unk>", "<s>", "</s>")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

_WORDS_TEXT = """
a about after again all and another any apple are around as ask at away baby back ball be bear because bed been before
began behind better between big bird blue boat book boy bread bring brother but by call came can car cat city clean cold
come cook could cup dark day did dinner do dog door down draw dream each early eat egg end even ever every eye face fall
family far farm father fell find fire first fish flower fly for forest found friend from game garden gave girl give go
good grass great green ground had hand happy hat have he head hear help her here high hill him his hold home hope horse
house how if in into is it jump just keep kind king knew lake land large last laugh learn leave left letter light like
little live long look lost love made make man many may me milk moon more morning most mother mountain much must my name
near never new night no not now of off old on once one only open or other our out over own paper people picture place
plant play put rain ran read red rest river road rock room run said same saw say school sea see seed she ship should
show sing sister sit sky sleep slow small snow so some song soon star stay stone stood stop story street summer sun swim
table take talk tall tell than that the their them then there they thing think this three time to told too took town
tree try turn two under until up us very walk want warm was water way we well went were what wheel when where while
white who wide will wind window winter with wood word work world would year yellow yes you young
"""
WORDS = tuple(_WORDS_TEXT.split())

PUNCTUATION = ".,!?"
"""What the model may say between words."""

OTHER_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'\"-:;()[]{}<>/*+=#_&%$@|\\~^`"

QUIET_WEIGHT = -200.0
"""What the output layer makes of the first number for the tokens that the model never says: letters, beginnings of
words, bytes. The last norm divides it by 7 to 14, so their logits are about -20."""

SPOKEN_DEVIATION = 4.0
"""Standard deviation of the other tokens' logits, about: at 400 steps the two likeliest were 0.004 apart or more, a
hundred times what cutting a step differently changes in F32."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_random_model() -> bytes:
    """The model's GGUF file, under 2 MB."""
    pieces = word_pieces()
    vocabulary = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return gguf_bytes(_metadata(vocabulary), _tensors(vocabulary))


def word_pieces() -> list[str]:
    """The pieces of text, those first that the tokeniser joins first.

    The tokeniser joins two neighbouring pieces only when the result is a piece as well, so each beginning of a word is
    one, and short before long.
    """
    beginnings = {SPACE + word[:end] for word in WORDS for end in range(1, len(word) + 1)}
    return [SPACE, *PUNCTUATION, *OTHER_CHARACTERS, *sorted(beginnings, key=lambda piece: (len(piece), piece))]


def _metadata(vocabulary: list[str]) -> dict[str, Value]:
    byte_end = len(SPECIALS) + 256
    kinds = [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256 + [_NORMAL] * (len(vocabulary) - byte_end)
    scores = [0.0] * byte_end + [-float(rank) for rank in range(len(vocabulary) - byte_end)]
    return {
        "general.architecture": "llama",
        "general.name": "tiny (random)",
        "general.description": "Random weights: it answers with words, in no order, and makes no sense.",
        "general.license": "apache-2.0",
        "general.file_type": 0,
        "llama.vocab_size": len(vocabulary),
        "llama.context_length": CONTEXT_LENGTH,
        "llama.embedding_length": EMBEDDING_LENGTH,
        "llama.block_count": BLOCK_COUNT,
        "llama.feed_forward_length": FEED_FORWARD_LENGTH,
        "llama.attention.head_count": HEAD_COUNT,
        "llama.attention.head_count_kv": HEAD_COUNT_KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": EMBEDDING_LENGTH // HEAD_COUNT,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tensors(vocabulary: list[str]) -> dict[str, Tensor]:
    """Random weights, but for the first number of each hidden state: it is 1 in every embedding, no block writes to it,
    and the output layer reads it to keep the quiet tokens quiet."""
    draw = random.Random(SEED).random
    width, key_width = EMBEDDING_LENGTH, EMBEDDING_LENGTH // HEAD_COUNT * HEAD_COUNT_KV
    embedding = _rows(draw, width, len(vocabulary), 1.0)
    for row in range(len(vocabulary)):
        embedding[row * width] = 1.0
    tensors = {"token_embd.weight": Tensor((width, len(vocabulary)), embedding)}
    for block in range(BLOCK_COUNT):
        for name, row_length, row_count in (
            ("attn_q", width, width),
            ("attn_k", width, key_width),
            ("attn_v", width, key_width),
            ("attn_output", width, width),
            ("ffn_gate", width, FEED_FORWARD_LENGTH),
            ("ffn_up", width, FEED_FORWARD_LENGTH),
            ("ffn_down", FEED_FORWARD_LENGTH, width),
        ):
            values = _rows(draw, row_length, row_count, 2.0 / math.sqrt(row_length))
            if name in ("attn_output", "ffn_down"):
                values[:row_length] = array("f", bytes(4 * row_length))
            tensors[f"blk.{block}.{name}.weight"] = Tensor((row_length, row_count), values)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{block}.{name}.weight"] = Tensor((width,), array("f", [1.0] * width))
    tensors["output_norm.weight"] = Tensor((width,), array("f", [1.0] * width))
    spoken = {SPACE + word for word in WORDS} | set(PUNCTUATION) | {SPECIALS[2]}
    output = _rows(draw, width, len(vocabulary), SPOKEN_DEVIATION / math.sqrt(width))
    for row, piece in enumerate(vocabulary):
        if piece in spoken:
            output[row * width] = 0.0
        else:
            output[row * width : (row + 1) * width] = array("f", [QUIET_WEIGHT] + [0.0] * (width - 1))
    tensors["output.weight"] = Tensor((width, len(vocabulary)), output)
    return tensors


def _rows(draw: Callable[[], float], row_length: int, row_count: int, deviation: float) -> array[float]:
    """Numbers from a uniform distribution around 0. Not `gauss`: only `random()` is promised to stay the same."""
    scale = deviation * math.sqrt(12)
    return array("f", [scale * (draw() - 0.5) for _ in range(row_length * row_count)])
