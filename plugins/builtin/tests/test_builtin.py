from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from enclave_builtin import random_model, whole_file
from enclave_builtin.plugin import FILE_BYTES, FILE_NAME, FILE_SHA256, BuiltinSource
from enclaved.plugin.hookspecs import SourceContext
from enclaved.plugin.manager import load_plugins
from enclaved.testing import check_source


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_sound(folder: Path) -> bool:
    return hashlib.sha256(folder.joinpath(FILE_NAME).read_bytes()).hexdigest() == FILE_SHA256


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    return SourceContext(tmp_path / "data" / "builtin")


def test_the_source_keeps_the_rules_of_sources(context: SourceContext) -> None:
    check_source(BuiltinSource, context, known=["tiny", "builtin:tiny"], missing=["builtin:", "builtin:huge"])


def test_both_references_name_one_model_that_says_what_it_is(context: SourceContext) -> None:
    entry = BuiltinSource().resolve("builtin:tiny", context)
    assert entry is not None
    assert entry == BuiltinSource().resolve("tiny", context)
    assert entry.name == "tiny"
    assert "random" in (entry.note or "")


def test_the_model_is_the_same_on_every_machine() -> None:
    model = random_model.make_random_model()
    assert len(model) == FILE_BYTES < 2 * 2**20
    assert hashlib.sha256(model).hexdigest() == FILE_SHA256


def test_the_file_is_made_at_first_need_and_then_left_alone(context: SourceContext) -> None:
    source = BuiltinSource()
    assert source.resolve("somebody:else", context) is None
    assert not context.data_folder.exists()
    source.resolve("tiny", context)
    assert names_in(context.data_folder) == [FILE_NAME]
    before = context.data_folder.joinpath(FILE_NAME).stat()
    source.resolve("tiny", context)
    BuiltinSource().resolve("tiny", context)
    after = context.data_folder.joinpath(FILE_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "folder's end"])
def test_a_damaged_file_is_made_again(context: SourceContext, damage: str) -> None:
    source = BuiltinSource()
    source.resolve("tiny", context)
    path = context.data_folder / FILE_NAME
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "folder's end":
        path.unlink()
        path.parent.rmdir()
    else:
        content[1000] ^= 1
        path.write_bytes(content[:-1] if damage == "cut" else content)
        os.utime(path, ns=(1, 1))
    source.resolve("tiny", context)
    assert is_sound(context.data_folder)


def test_a_reader_of_the_damaged_file_is_not_disturbed(context: SourceContext) -> None:
    context.data_folder.mkdir(parents=True)
    path = context.data_folder / FILE_NAME
    path.write_bytes(b"damaged")
    with path.open("rb") as reader:
        BuiltinSource().resolve("tiny", context)
        assert reader.read() == b"damaged"
    assert is_sound(context.data_folder)


def test_threads_may_need_it_at_once(context: SourceContext) -> None:
    gate = threading.Barrier(4)
    sound: list[bool] = []
    source = BuiltinSource()

    def need() -> None:
        gate.wait()
        source.resolve("tiny", context)
        sound.append(is_sound(context.data_folder))

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sound == [True] * 4
    assert names_in(context.data_folder) == [FILE_NAME]


def test_two_daemons_may_need_it_at_once(context: SourceContext) -> None:
    script = (
        "import sys, pathlib; from enclave_builtin.plugin import *; sys.stdin.readline();"
        "context = SourceContext(pathlib.Path(sys.argv[1]));"
        "print([BuiltinSource().resolve('tiny', context).name for _ in range(5)][-1])"
    )
    daemons = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(context.data_folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for daemon in daemons:
        assert daemon.stdin is not None
        daemon.stdin.write("\n")
        daemon.stdin.flush()
    assert [daemon.communicate()[0] for daemon in daemons] == ["tiny\n", "tiny\n"]
    assert is_sound(context.data_folder)
    assert names_in(context.data_folder) == [FILE_NAME]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("data").write_text("a file where a folder should be")
    context = SourceContext(tmp_path / "data" / "builtin")
    with pytest.raises(OSError, match=r"cannot be written to .*data"):
        BuiltinSource().resolve("tiny", context)
    assert BuiltinSource().models(context) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        BuiltinSource().resolve("tiny", SourceContext(tmp_path))
    assert names_in(tmp_path) == []


def test_parts_of_dead_processes_are_removed_and_fresh_ones_left(tmp_path: Path) -> None:
    old, fresh = tmp_path / f"{FILE_NAME}.old.part", tmp_path / f"{FILE_NAME}.new.part"
    for part in (old, fresh):
        part.write_bytes(b"half")
    long_ago = time.time() - 2 * whole_file.PART_SECONDS_MAX
    os.utime(old, (long_ago, long_ago))
    BuiltinSource().resolve("tiny", SourceContext(tmp_path))
    assert names_in(tmp_path) == [FILE_NAME, fresh.name]


def test_every_word_can_be_joined_from_its_letters() -> None:
    pieces = random_model.word_pieces()
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    assert len(ranks) == len(pieces)
    for word in random_model.WORDS:
        for end in range(1, len(word) + 1):
            assert ranks[random_model.SPACE + word[: end - 1]] < ranks[random_model.SPACE + word[:end]]
        assert set(word) <= set(pieces)


def test_the_file_reads_as_the_format_says(context: SourceContext) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    entry = BuiltinSource().resolve("tiny", context)
    assert entry is not None
    reader = gguf.GGUFReader(entry.files[0].path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    vocabulary = reader.fields["tokenizer.ggml.tokens"].contents()
    assert reader.fields["general.architecture"].contents() == "llama"
    assert vocabulary[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert len(vocabulary) == len(reader.fields["tokenizer.ggml.scores"].contents())
    assert tensors["token_embd.weight"].shape.tolist() == [random_model.EMBEDDING_LENGTH, len(vocabulary)]
    assert len(tensors) == 3 + 9 * random_model.BLOCK_COUNT
    assert all(tensor.tensor_type.name == "F32" for tensor in reader.tensors)
    first = tensors["token_embd.weight"].data
    assert (first[:, 0] == 1).all()
    for block in range(random_model.BLOCK_COUNT):
        assert (tensors[f"blk.{block}.ffn_down.weight"].data[0] == 0).all()


def test_the_plugin_loads_without_its_model_maker() -> None:
    plugins = load_plugins(only=["builtin"])
    assert [(line.state, line.kinds) for line in plugins.lines] == [("ready", ("source",))]
    script = "import sys, enclave_builtin.plugin; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"enclave_builtin.random_model", "enclave_builtin.gguf", "numpy", "gguf"} & set(loaded)
