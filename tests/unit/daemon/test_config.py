"""Any text is a configuration or a ConfigError that names what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enclaved.daemon.config import Config, ConfigError, DaemonSettings, describe, load_config, setting
from enclaved.daemon.main import TABLES
from enclaved.daemon.supervisor import WorkerSettings


@dataclass(frozen=True)
class Settings:
    """Every kind of setting there is."""

    flag: bool = setting(False, "A switch.")
    number: int = setting(3, "A number.", minimum=1)
    part: float = setting(0.5, "A part.", minimum=0)
    text: str = setting("x", "A text.")
    choice: Literal["a", "b"] = setting("a", "One of two.")
    maybe: str | None = setting(None, "Perhaps.")
    folders: tuple[str, ...] = setting((), "Some.")


DECLARED: Mapping[str, type] = {"": DaemonSettings, "part": Settings, "plugins.fake": Settings}


def _load(text: str = "", environment: Mapping[str, str] | None = None) -> Config:
    return load_config(text, environment or {}, DECLARED, "enclave.toml")


def test_without_a_file_everything_has_its_default() -> None:
    config = _load()
    assert config.table("part", Settings) == config.table("plugins.fake", Settings) == Settings()
    assert config.table("", DaemonSettings) == DaemonSettings()


def test_values_are_taken_from_their_tables() -> None:
    config = _load(
        """
        offline = true
        [aliases]
        mine = "tiny"
        [part]
        flag = true
        number = 7
        part = 1
        folders = ["/a", "/b"]
        [plugins.fake]
        text = "other"
        maybe = "yes"
        """
    )
    assert config.table("", DaemonSettings) == DaemonSettings(offline=True, aliases={"mine": "tiny"})
    assert config.table("part", Settings) == Settings(flag=True, number=7, part=1.0, folders=("/a", "/b"))
    assert config.table("plugins.fake", Settings) == Settings(text="other", maybe="yes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ofline = true", ["ofline", "offline"]),
        ("[part]\nnumbr = 1", ["part.numbr", "number"]),
        ("[prat]\nnumber = 1", ["prat"]),
        ("[plugins.fak]\ntext = ''", ["fak", "fake"]),
        ("[part]\nnumber = '1'", ["part.number", "whole number"]),
        ("[part]\nnumber = 1.5", ["part.number"]),
        ("[part]\nnumber = true", ["part.number"]),
        ("[part]\nflag = 1", ["part.flag", "true or false"]),
        ("[part]\npart = 'x'", ["part.part"]),
        ("[part]\npart = nan", ["part.part"]),
        ("[part]\npart = -0.1", ["part.part", "at least 0"]),
        ("[part]\nnumber = 0", ["part.number", "at least 1"]),
        ("[part]\nchoice = 'c'", ["part.choice", "'a', 'b'"]),
        ("[part]\nfolders = 'a'", ["part.folders"]),
        ("[part]\nfolders = [1]", ["part.folders"]),
        ("[part]\nmaybe = 1", ["part.maybe"]),
        ("[part]\ntext = 1979-05-27", ["part.text"]),
        ("part = 1", ["part", "table"]),
        ("plugins = 1", ["plugins", "table"]),
        ("[plugins]\nfake = 1", ["plugins.fake", "table"]),
        ("[aliases]\na = 1", ["aliases"]),
        ("aliases = 1", ["aliases"]),
        ("[part", ["TOML"]),
        ("a = " + "[" * 5000, ["TOML"]),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        _load(text)
    assert "enclave.toml" in error.value.message
    for word in words:
        assert word in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ENCLAVE_PART_FLAG", "1", Settings(flag=True)),
        ("ENCLAVE_PART_FLAG", "false", Settings(flag=False)),
        ("ENCLAVE_PART_NUMBER", "9", Settings(number=9)),
        ("ENCLAVE_PART_PART", "2", Settings(part=2.0)),
        ("ENCLAVE_PART_TEXT", "true", Settings(text="true")),
        ("ENCLAVE_PART_CHOICE", "b", Settings(choice="b")),
        ("ENCLAVE_PART_FOLDERS", "/a", Settings(folders=("/a",))),
        ("ENCLAVE_PART_FOLDERS", "['/a', '/b']", Settings(folders=("/a", "/b"))),
    ],
)
def test_the_environment_overrides_the_file(variable: str, value: str, expected: Settings) -> None:
    file = "[part]\nflag = false\nnumber = 3\ntext = 'x'\n"
    assert _load(file, {variable: value}).table("part", Settings) == expected


def test_the_environment_overrides_a_plugins_table_and_the_top_level() -> None:
    config = _load("", {"ENCLAVE_PLUGINS_FAKE_NUMBER": "5", "ENCLAVE_OFFLINE": "1"})
    assert config.table("plugins.fake", Settings).number == 5
    assert config.table("", DaemonSettings).offline


@pytest.mark.parametrize("value", ["x", "1.5", "0", "[" * 5000, "1\nb = 2\n["])
def test_a_wrong_variable_is_named(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load("", {"ENCLAVE_PART_NUMBER": value})
    assert "ENCLAVE_PART_NUMBER" in error.value.message


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert _load("", {"ENCLAVE_PART_NUMBER": "", "ENCLAVE_OFFLINE": ""}).table("part", Settings) == Settings()


def test_a_misspelt_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        _load("", {"ENCLAVE_PART_NUMBR": "1"})
    assert "ENCLAVE_PART_NUMBER" in error.value.hint


def test_a_number_beyond_all_reason_is_refused() -> None:
    with pytest.raises(ConfigError, match="number"):
        _load(f"[part]\nnumber = {10**30}\n")


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_no_deadline_of_the_daemon_can_be_negative_or_no_number(seconds: str) -> None:
    for key in ("load_seconds_max", "stop_seconds_max", "cancel_seconds_max"):
        with pytest.raises(ConfigError):
            load_config(f"[workers]\n{key} = {seconds}", {}, {"workers": WorkerSettings}, "enclave.toml")


def test_a_setting_that_its_own_class_refuses_is_an_error_and_no_crash() -> None:
    @dataclass(frozen=True)
    class Strict:
        number: int = setting(1, "Even.")

        def __post_init__(self) -> None:
            if self.number == 2:
                raise ValueError("two is refused")

    with pytest.raises(ConfigError, match="two is refused"):
        load_config("[strict]\nnumber = 2", {}, {"": DaemonSettings, "strict": Strict}, "enclave.toml")


KEYS = st.sampled_from(["offline", "aliases", "part", "plugins", "fake", "flag", "number", "x"])
VALUES = st.sampled_from(
    ["1", "true", "'a'", "1.5", "[]", "['a']", "{}", "nan", "inf", "1979-05-27", "07:32:00", "{ a = 'b' }", "[[1]]"]
)
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.lists(KEYS, min_size=1, max_size=3).map(lambda path: f"[{'.'.join(path)}]"),
    st.lists(KEYS, min_size=1, max_size=2).map(lambda path: f"[[{'.'.join(path)}]]"),
)


@given(st.lists(LINES, max_size=8).map("\n".join) | st.text(max_size=60), st.text(max_size=10))
@example("[plugins]", "")
@example("[[part]]", "")
def test_any_text_is_a_configuration_or_a_config_error(text: str, variable: str) -> None:
    try:
        config = _load(text, {"ENCLAVE_PART_PART": variable, "ENCLAVE_ALIASES": variable})
    except ConfigError:
        return
    for name, kind in DECLARED.items():
        assert config.table(name, kind)


def test_every_setting_of_the_daemon_says_what_it_is_for() -> None:
    rows: list[tuple[str, str, Any, str]] = describe(TABLES)
    assert {name for name, _, _, help_text in rows if not help_text.endswith(".")} == set()
    assert len({variable for _, variable, _, _ in rows}) == len(rows)
