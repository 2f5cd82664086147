from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_fake.knobs import Knobs, KnobValue, knobs_of, parse_knobs, spell_knobs
from enclave_fake.plugin import FakeBackend, FakeSource
from enclaved.plugin.engine import Placement
from enclaved.plugin.hookspecs import SourceContext
from enclaved.plugin.manager import load_plugins
from enclaved.plugin.model import ModelEntry, ModelHeader
from enclaved.testing import check_source

CONTEXT = SourceContext(Path("/nowhere"))


def resolve(reference: str) -> ModelEntry:
    entry = FakeSource().resolve(reference, CONTEXT)
    assert entry is not None
    return entry


def test_the_source_keeps_the_rules_of_sources() -> None:
    check_source(
        FakeSource,
        CONTEXT,
        known=["fake:a", "fake:b?load_seconds=0.5&mode=echo", "fake:c?text=hello+w%26rld&trim=no"],
        missing=["fake:", "fake:a b", "fake:a?speed=1", "fake:a?bytes=much", "fake:a?mode", "fake:-"],
        foreign=["fake", "tiny", "", "hf:fake:a", "/fake:a"],
    )


def test_one_model_has_one_name_however_its_knobs_are_spelled() -> None:
    spelled = resolve("fake:a?tokens_per_second=10.0&bytes=2GiB&text=a+b&load_seconds=0&deaf=0")
    assert spelled.name == "fake:a?bytes=2147483648&text=a%20b&tokens_per_second=10"
    assert resolve(spelled.name).name == spelled.name
    assert resolve("fake:a?").name == "fake:a"


def test_the_entry_carries_all_that_a_daemon_needs_of_a_model_without_files() -> None:
    entry = resolve("fake:a?bytes=1MiB&context=100&sequences=3")
    assert entry.files == ()
    assert entry.backends == ("fake",)
    assert entry.settings == {"bytes": 2**20, "context": 100, "sequences": 3}
    assert entry.header is not None
    assert (entry.header.format, entry.header.weights_bytes, entry.header.context_length) == ("fake", 2**20, 100)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("token_per_second=1", "nearest is tokens_per_second"),
        ("bytes=1&bytes=2", "given twice"),
        ("bytes=-1", "0 to 1.1259e+15, not -1"),
        ("context=0", "takes 1 to"),
        ("sequences=257", "takes 1 to 256"),
        ("load_seconds=nan", "takes 0 to 86400, not nan"),
        ("crash_at_token=1.5", "takes a whole number"),
        ("trim=perhaps", "takes true or false"),
        ("mode=loud", "takes count or echo"),
        ("text=" + "x" * 5000, "at most 4096 characters"),
    ],
)
def test_a_wrong_knob_is_refused_with_what_it_takes(query: str, words: str) -> None:
    with pytest.raises(LookupError) as caught:
        resolve(f"fake:a?{query}")
    assert words in str(caught.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "load_seconds": st.floats(0, 86_400),
            "bytes": st.integers(0, 2**50),
            "crash_at_load": st.booleans(),
            "mode": st.sampled_from(["count", "echo"]),
            "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
        },
    )
)
def test_knobs_come_back_from_their_spelling(knobs: dict[str, KnobValue]) -> None:
    reference = f"fake:a?{spell_knobs(knobs)}"
    assert knobs_of(resolve(reference).settings) == knobs_of(knobs)


def test_settings_that_no_source_checked_are_checked_by_the_engine() -> None:
    assert knobs_of({"load_seconds": 1}) == Knobs(load_seconds=1.0)
    for settings in ({"bytes": "1"}, {"bytes": True}, {"trim": 1}, {"nothing": 1}, {"context": 0}):
        with pytest.raises(ValueError):
            knobs_of(settings)
    assert parse_knobs([("bytes", "3KiB")]) == {"bytes": 3072}


def test_the_estimate_counts_the_context_that_will_be_in_force() -> None:
    header = resolve("fake:a?bytes=1000&kv_bytes=10&context=100").header
    assert header is not None
    use = FakeBackend().estimate(header, Placement(device="cpu", context=500, sequences=2, threads=1))
    assert (use.weights_bytes, use.kv_bytes, use.total_bytes) == (1000, 2000, 3000)
    assert FakeBackend().refuse(header) is None
    assert "gguf" in (FakeBackend().refuse(ModelHeader(format="gguf", architecture="llama")) or "")
    assert not FakeBackend().recognises("model.gguf")


def test_the_plugin_loads_and_lists_no_model() -> None:
    plugins = load_plugins(only=["fake"])
    assert [(line.name, line.state, line.kinds) for line in plugins.lines] == [("fake", "ready", ("backend", "source"))]
    assert list(plugins.sources[0].models(CONTEXT)) == []


def test_the_light_half_imports_nothing_heavy() -> None:
    script = "import sys, enclave_fake.plugin; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "enclave_fake.knobs" in loaded
    assert not {"enclave_fake.engine", "threading", "numpy", "asyncio", "signal"} & set(loaded)
