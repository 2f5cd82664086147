"""The configuration: one TOML file, checked against the settings that each part declares beside its own code.

A part declares a frozen dataclass whose fields all have defaults and, as metadata, a sentence of help (`setting`). The
file has one table a part. An environment variable `ENCLAVE_<TABLE>_<KEY>` overrides a key, `ENCLAVE_<KEY>` one of the
top level. Keys that nobody declared are refused, with the nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration is wrong. `hint` says what to change."""

    code = "bad_config"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def setting(default: Any, help_text: str, *, minimum: float | None = None, maximum: float = 2**50) -> Any:
    """A field of a settings dataclass: its default, a sentence for a person, and the bounds of a number."""
    return field(default=default, metadata={"help": help_text, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class DaemonSettings:
    """The top level of the file."""

    offline: bool = setting(False, "Never start the process that may reach the internet.")
    default_model: str = setting("tiny", "The model that is used when a client names none.")
    aliases: Mapping[str, str] = field(
        default_factory=dict[str, str], metadata={"help": "Short names for references: name = reference."}
    )


class Config:
    """The settings of every part, ready to be asked for."""

    def __init__(self, tables: Mapping[str, object]) -> None:
        self._tables = tables

    def table(self, name: str, kind: type[T]) -> T:
        """The settings of one part. `name` is its table, "" the top level, `plugins.NAME` a plugin's."""
        found = self._tables[name]
        if not isinstance(found, kind):
            raise TypeError(f"{name} holds {type(found).__name__}")
        return found


def load_config(text: str, environment: Mapping[str, str], declared: Mapping[str, type], where: str) -> Config:
    """Reads and checks the file's `text`. `where` names it in messages. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid TOML: {error}", "Correct the line that the message names.") from error
    tables: dict[str, object] = {}
    for name, kind in declared.items():
        table = _take(values, name.split(".") if name else [], where)
        own = table if name else {key: value for key, value in values.items() if key not in _first_parts(declared)}
        beside = () if name else _first_parts(declared)
        tables[name] = _read_table(name, kind, own, environment, where, beside)
    _refuse_unknown_tables(values, declared, where)
    _refuse_unknown_variables(environment, declared)
    return Config(MappingProxyType(tables))


def describe(declared: Mapping[str, type]) -> list[tuple[str, str, Any, str]]:
    """(name, environment variable, default, help) of every setting, for the documentation and its test."""
    rows: list[tuple[str, str, Any, str]] = []
    for table, kind in declared.items():
        for slot in fields(cast("Any", kind)):
            name = f"{table}.{slot.name}" if table else slot.name
            rows.append((name, _variable(table, slot.name), _default(slot), str(slot.metadata.get("help", ""))))
    return rows


def _first_parts(declared: Mapping[str, type]) -> set[str]:
    return {name.split(".")[0] for name in declared if name}


def _take(values: Mapping[str, Any], path: list[str], where: str) -> Mapping[str, Any]:
    for depth, part in enumerate(path):
        found = values.get(part, {})
        if not isinstance(found, dict):
            name = ".".join(path[: depth + 1])
            raise ConfigError(f"{where}: {name} is not a table", f"Write [{name}] and its keys below it.")
        values = cast("dict[str, Any]", found)
    return values


def _refuse_unknown_tables(values: Mapping[str, Any], declared: Mapping[str, type], where: str) -> None:
    plugins = [name.removeprefix("plugins.") for name in declared if name.startswith("plugins.")]
    for name in _take(values, ["plugins"], where):
        if name not in plugins:
            raise ConfigError(
                f"{where}: there is no plugin {name!r} with settings", _nearest(name, plugins, "plugins with settings")
            )


def _refuse_unknown_variables(environment: Mapping[str, str], declared: Mapping[str, type]) -> None:
    """Refuses a variable that begins like those of a table and is none of them."""
    known = [variable for _, variable, _, _ in describe(declared)]
    prefixes = tuple(f"{_variable(table, '')}" for table in declared if table)
    for name in environment:
        if name.startswith(prefixes) and name not in known:
            raise ConfigError(f"the environment variable {name} is no setting", _nearest(name, known, "variables"))


def _read_table(
    name: str,
    kind: type[T],
    own: Mapping[str, Any],
    environment: Mapping[str, str],
    where: str,
    tables: Iterable[str] = (),
) -> T:
    hints = get_type_hints(kind)
    slots = {slot.name: slot for slot in fields(cast("Any", kind))}
    known = [*slots, *tables]
    prefix = f"{name}." if name else ""
    values: dict[str, Any] = {}
    for key, value in own.items():
        if key not in slots:
            raise ConfigError(f"{where}: unknown setting {prefix}{key}", _nearest(key, known, "settings here"))
        values[key] = _bounded(
            slots[key], _checked(hints[key], value, f"{where}: {prefix}{key}"), f"{where}: {prefix}{key}"
        )
    for key in slots:
        variable = _variable(name, key)
        if environment.get(variable):
            checked = _checked(hints[key], _from_text(hints[key], environment[variable]), variable)
            values[key] = _bounded(slots[key], checked, variable)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: {error}", "Correct the value that the message names.") from error


def _bounded(slot: Field[Any], value: Any, where: str) -> Any:
    minimum: float | None = slot.metadata.get("minimum")
    if minimum is not None and value is not None and not value >= minimum:  # true for a NaN too
        raise ConfigError(f"{where} is {value!r}", f"It must be at least {minimum:g}.")
    maximum: float | None = slot.metadata.get("maximum")
    if maximum is not None and isinstance(value, (int, float)) and value > maximum:
        raise ConfigError(f"{where} is {value!r}", f"It must be at most {maximum:,.0f}.")
    return value


def _variable(table: str, key: str) -> str:
    return "_".join(["ENCLAVE", *(part.upper() for part in table.split(".") if part), key.upper()])


def _default(slot: Field[Any]) -> Any:
    return slot.default_factory() if slot.default_factory is not MISSING else slot.default


def _nearest(name: str, known: list[str], what: str) -> str:
    import difflib  # only when something is wrong: it would slow every start

    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"The {what} are: {', '.join(sorted(known)) or 'none'}."


def _from_text(hint: Any, text: str) -> Any:
    """An environment variable's text as TOML, where it is not simply a string."""
    if hint is str or get_origin(hint) is Literal:
        return text
    if hint is bool and text in ("0", "1"):
        return text == "1"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return [text] if get_origin(hint) is tuple else text


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        inner = [option for option in get_args(hint) if option is not type(None)]
        return _checked(inner[0], value, where)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise ConfigError(f"{where} is {value!r}", f"It may be {', '.join(map(repr, get_args(hint)))}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_checked(get_args(hint)[0], item, where) for item in cast("list[Any]", value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        inner_hint = get_args(hint)[1]
        return {key: _checked(inner_hint, item, where) for key, item in cast("dict[str, Any]", value).items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
    shape = 'a list, such as ["/a", "/b"]' if origin is tuple else "a table"
    raise ConfigError(f"{where} is {value!r}", f"It must be {wanted.get(hint, shape)}.")
