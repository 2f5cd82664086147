"""The llama.cpp engine against every rule of the engine contract, on the built-in model."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enclaved.plugin.engine import Engine, LoadRequest, OpenFile, Placement
from enclaved.plugin.hookspecs import SourceContext
from enclaved.plugin.manager import load_plugins
from enclaved.plugin.model import ModelHeader
from enclaved.testing import check_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

GOLDEN_MODEL = Path(__file__).parents[3] / "../shared/models/stories260K/stories260K-f32.gguf"
"""A small trained model, beside the project where there is one."""


def attribute(name: str) -> Any:
    module, _, found = name.partition(":")
    return getattr(importlib.import_module(module), found)


def never_cancel(fraction: float) -> bool:
    return True


@pytest.fixture
def engine_of() -> Iterator[Callable[[Path], Callable[[Placement], Engine]]]:
    """A function that loads a model file as a worker does, for `check_backend`."""
    backend = load_plugins(only=["llama_cpp"]).backends["llama_cpp"]
    with ExitStack() as stack:

        def prepare(path: Path) -> Callable[[Placement], Engine]:
            file = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
            assert backend.header_reader is not None
            header: ModelHeader = attribute(backend.header_reader)(file, size)
            assert backend.refuse(header) is None

            def load(placement: Placement) -> Engine:
                opened = OpenFile("weights", path.name, file.fileno(), size)
                return attribute(backend.engine).load(
                    LoadRequest(path.stem, (opened,), header, placement), never_cancel
                )

            return load

        yield prepare


def test_it_keeps_every_rule_on_the_built_in_model(
    engine_of: Callable[[Path], Callable[[Placement], Engine]], tmp_path: Path
) -> None:
    plugins = load_plugins(only=["builtin"])
    assert plugins.sources, f"the builtin plugin does not load: {plugins.lines}"
    entry = plugins.sources[0].resolve("tiny", SourceContext(tmp_path))
    assert entry is not None
    skipped = check_backend(engine_of(Path(entry.files[0].path)))
    assert skipped == []


def test_it_keeps_every_rule_on_a_trained_model(engine_of: Callable[[Path], Callable[[Placement], Engine]]) -> None:
    if not GOLDEN_MODEL.exists():
        pytest.skip(f"the project has no {GOLDEN_MODEL.name} beside it")
    skipped = check_backend(engine_of(GOLDEN_MODEL))
    assert skipped == []
