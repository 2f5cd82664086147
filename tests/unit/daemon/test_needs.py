"""From a model and a wish to what an instance takes; a header that lies leads to a refusal, never to a booking."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import StandInBackend, an_entry

from enclaved.core.events import Wish
from enclaved.core.ids import ModelKey
from enclaved.daemon.needs import (
    BYTES_MAX,
    CONTEXT_UNKNOWN,
    InstanceSettings,
    backends_of,
    choose_backend,
    need_of,
    placement_for,
)
from enclaved.daemon.refusal import RefusalError
from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.model import ModelHeader

SETTINGS = InstanceSettings()
BACKENDS = {"one": StandInBackend("one", ".gguf"), "two": StandInBackend("two", ".gguf")}


def _header(**fields: Any) -> ModelHeader:
    return ModelHeader(format="x", architecture="y", **fields)


def _placement(header: ModelHeader | None = None, **wishes: Any) -> Placement:
    header = header or _header(context_length=8192, weights_bytes=10**12)
    return placement_for(header, Wish(**wishes), SETTINGS, "cpu", 4)


def test_the_first_backend_that_recognises_a_file_runs_it() -> None:
    entry = an_entry("/m/a.gguf")
    assert backends_of(entry, BACKENDS) == ["one", "two"]
    assert choose_backend(entry, BACKENDS, None).name == "one"
    assert choose_backend(entry, BACKENDS, "two").name == "two"


def test_an_entry_that_names_its_backends_is_run_by_no_other() -> None:
    entry = an_entry("/m/a.gguf", backends=("missing", "two"))
    assert choose_backend(entry, BACKENDS, None).name == "two"
    with pytest.raises(RefusalError) as refused:
        choose_backend(entry, BACKENDS, "one")
    assert refused.value.code == "unsupported_model"


@pytest.mark.parametrize("wanted", [None, "three"])
def test_a_model_that_nothing_runs_is_refused(wanted: str | None) -> None:
    with pytest.raises(RefusalError) as refused:
        choose_backend(an_entry("/m/a.onnx"), BACKENDS, wanted)
    assert refused.value.code == "no_backend"


def test_a_wish_is_fulfilled_and_the_rest_comes_from_the_settings() -> None:
    placement = _placement(context=100, sequences=2, threads=3, kv_type="f32", flash_attention=True)
    assert placement == Placement("cpu", 100, 2, 3, "f32", True)
    assert _placement() == Placement("cpu", SETTINGS.context, SETTINGS.sequences, 4, SETTINGS.kv_type, None)


def test_no_more_context_is_given_than_the_model_was_trained_for() -> None:
    assert _placement(_header(context_length=100)).context == 100
    with pytest.raises(RefusalError) as refused:
        _placement(_header(context_length=100), context=101)
    assert (refused.value.code, refused.value.numbers["context_max"]) == ("bad_request", 100)


@pytest.mark.parametrize("claimed", [None, 0, -1, -(2**63)])
def test_a_header_without_a_sensible_context_counts_as_one_that_says_none(claimed: int | None) -> None:
    assert _placement(_header(context_length=claimed)).context == min(CONTEXT_UNKNOWN, SETTINGS.context)


def test_an_unknown_kv_type_is_refused() -> None:
    with pytest.raises(RefusalError) as refused:
        _placement(kv_type="f8")
    assert refused.value.code == "bad_request"


@given(st.integers(-(2**63), 2**64), st.integers(1, 10**6) | st.none())
def test_whatever_a_header_claims_the_placement_is_possible(claimed: int, threads: int | None) -> None:
    placement = _placement(_header(context_length=claimed), threads=threads)
    assert placement.context >= 1
    assert 1 <= placement.threads <= 4


def _need(backend: StandInBackend) -> Any:
    return need_of(ModelKey("m@x"), "m", backend, _header(), _placement())


def test_what_the_backend_refuses_is_refused_with_its_words() -> None:
    with pytest.raises(RefusalError, match="too strange") as refused:
        _need(StandInBackend("x", refusal="is too strange"))
    assert refused.value.code == "unsupported_model"


@pytest.mark.parametrize("estimate", [-1, BYTES_MAX + 1, 2**70, 10**400])
def test_an_estimate_that_cannot_be_is_never_booked(estimate: int) -> None:
    with pytest.raises(RefusalError) as refused:
        _need(StandInBackend("x", estimate=MemoryUse(weights_bytes=estimate)))
    assert refused.value.code == "bad_model_file"
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize("error", [ZeroDivisionError(), IndexError(), OverflowError(), ValueError(), TypeError()])
def test_a_header_on_which_the_estimate_stumbles_is_refused(error: Exception) -> None:
    with pytest.raises(RefusalError) as refused:
        _need(StandInBackend("x", failure=error))
    assert refused.value.code == "bad_model_file"


def test_a_need_is_the_process_and_what_the_backend_estimates_for_the_placement() -> None:
    backend = StandInBackend("x", estimate=MemoryUse(1, 2, 3, 4))
    need = _need(backend)
    assert need.bytes_estimated == backend.process_bytes + 10
    assert (need.context, need.sequences) == (SETTINGS.context, SETTINGS.sequences)
