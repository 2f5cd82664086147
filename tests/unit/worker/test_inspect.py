"""A header, or a refusal that says why: nothing a file holds may end the inspector."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from enclaved.link.messages import FromChild, HeaderRead, HeaderRefused, ReadHeader, encode
from enclaved.plugin.model import HEADER_BYTES_MAX, HeaderError, ModelHeader
from enclaved.worker import inspect as inspected
from enclaved.worker.inspect import read_header

Reader = Callable[[BinaryIO, int], object]
Read = Callable[[Reader], tuple[FromChild, int]]


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads a small file's header with a reader of the test."""
    path = tmp_path / "model"
    path.write_bytes(b"content")

    def read(reader: Reader) -> tuple[FromChild, int]:
        def load_attribute(_: str) -> Reader:
            return reader

        monkeypatch.setattr(inspected, "load_attribute", load_attribute)
        descriptor = os.open(path, os.O_RDONLY)
        return read_header(ReadHeader(7, "module:function"), descriptor), descriptor

    return read


def _header(**fields: object) -> ModelHeader:
    return ModelHeader(format="fake", architecture="a", **fields)  # type: ignore[arg-type]


def test_the_reader_gets_the_open_file_and_its_size(reads: Read) -> None:
    def reader(file: BinaryIO, size_bytes: int) -> ModelHeader:
        return _header(name=file.read().decode(), weights_bytes=size_bytes)

    message, _ = reads(reader)
    assert isinstance(message, HeaderRead)
    assert (message.job, message.header["name"], message.header["weights_bytes"]) == (7, "content", 7)


@pytest.mark.parametrize("fails", [False, True])
def test_the_file_is_closed_afterwards(reads: Read, fails: bool) -> None:
    def reader(file: BinaryIO, size_bytes: int) -> ModelHeader:
        if fails:
            raise HeaderError("no")
        return _header()

    _, descriptor = reads(reader)
    with pytest.raises(OSError):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    "error",
    [
        HeaderError("the file is cut off"),
        ImportError("no such reader"),
        OSError(5, "input/output error"),
        ValueError("prompt or secret"),
        KeyError("x"),
        MemoryError(),
        OverflowError(),
        ZeroDivisionError(),
        TypeError(),
        RecursionError(),
        EOFError(),
        AssertionError(),
        AttributeError("x"),
    ],
)
def test_a_reader_that_fails_is_a_refusal(reads: Read, error: Exception) -> None:
    def reader(file: BinaryIO, size_bytes: int) -> ModelHeader:
        raise error

    message, _ = reads(reader)
    assert isinstance(message, HeaderRefused)
    assert message.job == 7
    assert message.message
    assert "secret" not in message.message


@pytest.mark.parametrize(
    "header",
    [
        _header(name="x" * HEADER_BYTES_MAX),
        _header(weights_bytes=2**64),
        _header(weights_bytes=-(2**63) - 1),
        _header(name="half a pair \ud800"),
        None,
        {"format": "x"},
    ],
)
def test_a_header_that_cannot_travel_is_a_refusal(reads: Read, header: object) -> None:
    message, _ = reads(lambda _file, _size: header)
    assert isinstance(message, HeaderRefused)


def test_a_refusal_can_always_travel(reads: Read) -> None:
    def reader(file: BinaryIO, size_bytes: int) -> ModelHeader:
        raise HeaderError("half a pair \ud800 " + "x" * 100_000)

    message, _ = reads(reader)
    assert len(encode(message)) < 20_000


def test_a_plugin_that_names_no_reader_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"")
    for name in ("no_such_module_at_all:read", "os:no_such_function", "os"):
        message = read_header(ReadHeader(1, name), os.open(tmp_path / "model", os.O_RDONLY))
        assert isinstance(message, HeaderRefused)
