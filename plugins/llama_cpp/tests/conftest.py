"""Finds the small trained models beside a developer's checkout, and loads engines that tests may forget to close."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from enclave_llama_cpp.gguf import read_header
from enclaved.plugin.engine import LoadRequest, OpenFile, Placement
from plugins.llama_cpp.tests.tiny_gguf import tiny_llama

if TYPE_CHECKING:
    from enclave_llama_cpp.engine import LlamaCppEngine

SHARED_MODELS = Path(__file__).parents[4] / "shared" / "models"


class LoadEngine(Protocol):
    """Loads a file as a worker does. By default: context 128, four sequences, one thread, and what makes a stream's
    numbers independent of its neighbours: float32 keys and values, no flash attention. `fields`: of `Placement`."""

    def __call__(self, path: Path, *, progress: Callable[[float], bool] = ..., **fields: Any) -> LlamaCppEngine: ...


@pytest.fixture
def shared_models() -> Path:
    """The folder of trained models that a developer may have; without it the test is skipped."""
    if not SHARED_MODELS.is_dir():
        pytest.skip("needs the trained models in ../shared/models, which are not part of a clone")
    return SHARED_MODELS


@pytest.fixture
def load_engine() -> Generator[LoadEngine]:
    """Loads a file as a worker does, from an open descriptor; closes what was loaded."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is not installed")
    from enclave_llama_cpp.engine import LlamaCppEngine

    with ExitStack() as stack:

        def load(path: Path, *, progress: Callable[[float], bool] = lambda _: True, **fields: Any) -> LlamaCppEngine:
            wanted: dict[str, Any] = {
                "device": "cpu",
                "context": 128,
                "sequences": 4,
                "threads": 1,
                "kv_type": "f32",
                "flash_attention": False,
            }
            size_bytes = path.stat().st_size
            with path.open("rb") as file:
                header = read_header(file, size_bytes)
                request = LoadRequest(
                    model=path.name,
                    files=(OpenFile("weights", path.name, file.fileno(), size_bytes),),
                    header=header,
                    placement=Placement(**(wanted | fields)),
                )
                engine = LlamaCppEngine.load(request, progress)
            assert isinstance(engine, LlamaCppEngine)
            stack.callback(engine.close)
            return engine

        yield load


@pytest.fixture
def vocabulary(tmp_path: Path, load_engine: LoadEngine) -> tuple[Any, int]:
    """llama.cpp's vocabulary of a loaded model, with the number of its tokens."""
    import llama_cpp

    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(tiny_llama().encode())
    engine = load_engine(path)
    model = vars(engine)["_parts"].model
    return llama_cpp.llama_model_get_vocab(model), engine.vocabulary.size
