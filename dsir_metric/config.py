"""Settings: frozen dataclasses, filled strictly from TOML, every field within the bounds it declares."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dsir_metric.bounds import MOST_DEPTH, MOST_ENTRIES, MOST_LETTERS, MOST_NUMBER, Length, Range, quoted
from dsir_metric.errors import ConfigError
from dsir_metric.tomlfile import read_tables, write_tables

__all__ = ["Settings", "checked", "dump_toml", "from_dict", "load_toml", "to_dict"]

Config = TypeVar("Config")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


class Settings:
    """Base of a frozen dataclass of settings: its fields are checked and converted however it is made.

    A field is bool, int, float, str, Path, a Literal, a tuple, a mapping, a union of such, or a dataclass. `Annotated`
    with a `Range` or `Length` it says what it may be; numbers are finite in any case.

    Raises
    ------
    ConfigError
        If a field has the wrong type or is out of bounds, or fields contradict each other.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(cast(Any, type(self))).items():
            object.__setattr__(self, name, _convert(hint, getattr(self, name), name))
        self.check_together()

    def check_together(self) -> None:
        """See that the fields, each within its own bounds, do not contradict each other; ConfigError if they do."""


def load_toml(path: str | Path, cls: type[Config]) -> Config:
    """Read the dataclass `cls` from a TOML file.

    Parameters
    ----------
    path : str or Path
        A TOML file; tables become nested dataclasses.
    cls : type
        A dataclass, see `Settings`.

    Returns
    -------
    instance of `cls`

    Raises
    ------
    ConfigError
        If the file cannot be read, is no TOML, has an unknown key or a value of the wrong type or out of bounds.
    """
    tables = read_tables(path)
    try:
        return from_dict(cls, tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_toml(config: object) -> str:
    """Text of a TOML file that `load_toml` reads back into the dataclass `config`; None is left out."""
    return write_tables(to_dict(config))


def from_dict(cls: type[Config], mapping: Mapping[str, object]) -> Config:
    """Build the dataclass `cls` from a mapping of the same shape; lists become tuples, whole numbers floats.

    Raises
    ------
    ConfigError
        On an unknown key (the nearest known one is named), a missing one, or a value of the wrong type or out of
        bounds.
    """
    return cast(Config, _dataclass(cls, mapping, ""))


def checked(hint: Any, value: object, name: str) -> Any:
    """A single value in the type `hint`, within its bounds; `name` is what an error calls it.

    Raises
    ------
    ConfigError
        If it has another type or is out of bounds.
    """
    return _convert(hint, value, name)


def to_dict(config: object) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers of a dataclass, fit for JSON; the inverse of `from_dict`."""
    return cast(dict[str, Any], _plain(config))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers are no JSON
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value) if isinstance(value, Path) else value


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields of a dataclass, with their bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _dataclass(cls: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or 'the whole'} must be a table of settings, got {quoted(value)}")
    hints = _hints(cls)
    for key in value:
        if key not in hints:
            raise ConfigError(f"unknown setting {_within(where, key)}{_nearest(str(key), list(hints))}")
    given = {key: _convert(hints[key], item, _within(where, key)) for key, item in value.items()}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in given:
            raise ConfigError(f"{_within(where, field.name)} is missing")
    return cls(**given)


def _within(where: str, key: object) -> str:
    """Name of an entry of a table, as TOML has it; a key that is no plain word is quoted."""
    name = key if isinstance(key, str) and key.isidentifier() and len(key) < 80 else quoted(key)
    return f"{where}.{name}" if where else str(name)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _convert(hint: Any, value: object, where: str) -> object:
    """Check `value` against the type `hint` and its bounds, and give it in that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(arguments, value, where)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {quoted(value)}")
    if origin is tuple:
        return _tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _table(arguments[1], value, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, cast(type, hint)) else _dataclass(cast(type, hint), value, where)
    return _plain_tree(value, where) if hint is Any or hint is object else _scalar(hint, value, where)


def _bounded(arguments: tuple[Any, ...], value: object, where: str) -> object:
    """A value of an annotated type; lengths are judged before anything is converted."""
    hint, *limits = arguments
    for limit in limits:
        if isinstance(limit, Length) and isinstance(value, str | list | tuple | Mapping) and len(value) not in limit:
            what = "letters" if isinstance(value, str) else "entries"
            raise ConfigError(f"{where} must have {limit} {what}, got {len(value)}: {quoted(value)}")
    converted = _convert(hint, value, where)
    for limit in limits:
        if isinstance(limit, Range) and cast(float, converted) not in limit:
            raise ConfigError(f"{where} must be {_KINDS[hint]} {limit}, got {quoted(converted)}")
    return converted


def _one_of(hints: tuple[Any, ...], value: object, where: str) -> object:
    """The first member of a union that takes the value; None only where None came."""
    if value is None and type(None) in hints:
        return None
    members = [h for h in hints if h is not type(None)]
    for hint in members:
        try:
            return _convert(hint, value, where)
        except ConfigError:
            if hint is members[-1]:
                raise
    raise ConfigError(f"{where} cannot be None")


def _tuple(hints: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, got {quoted(value)}")
    if len(hints) == 2 and hints[1] is Ellipsis:
        _check_entries(value, where)
        hints = (hints[0],) * len(value)
    if len(value) != len(hints):
        raise ConfigError(f"{where} must have {len(hints)} entries, got {len(value)}: {quoted(list(value))}")
    return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _table(hint: Any, value: object, where: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {quoted(value)}")
    _check_entries(value, where)
    return {cast(str, _scalar(str, k, where)): _convert(hint, v, _within(where, k)) for k, v in value.items()}


def _check_entries(value: list[Any] | tuple[Any, ...] | Mapping[Any, Any], where: str) -> None:
    if len(value) > MOST_ENTRIES:
        raise ConfigError(f"{where} must have up to {MOST_ENTRIES} entries, got {len(value)}")


def _plain_tree(value: object, where: str, depth: int = 0) -> object:
    """A value that is not declared further: plain, within the general bounds, and of bounded depth."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return _scalar(type(value), value, where)
    if isinstance(value, Integral):
        return _scalar(int, value, where)
    if isinstance(value, Real):
        return _scalar(float, value, where)
    if depth == MOST_DEPTH:
        raise ConfigError(f"{where} must be nested up to {MOST_DEPTH} deep, got more")
    if isinstance(value, list | tuple):
        _check_entries(value, where)
        return [_plain_tree(v, where, depth + 1) for v in value]
    if isinstance(value, Mapping):
        _check_entries(value, where)
        return {_scalar(str, k, where): _plain_tree(v, where, depth + 1) for k, v in value.items()}
    raise ConfigError(f"{where} must be a plain value, got {quoted(value)}")


def _scalar(hint: Any, value: object, where: str) -> object:
    if hint in (int, float):
        kind = Integral if hint is int else Real  # numpy's numbers too
        if isinstance(value, kind) and not isinstance(value, bool):
            if not -MOST_NUMBER <= value <= MOST_NUMBER:  # type: ignore[operator]
                raise ConfigError(f"{where} must be {_KINDS[hint]} within +-{MOST_NUMBER:.0e}, got {quoted(value)}")
            return hint(value)
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)  # the system judges its letters
    elif isinstance(value, hint):
        return _letters(value, where) if hint is str else value
    raise ConfigError(f"{where} must be {_KINDS.get(hint, hint.__name__)}, got {quoted(value)}")


def _letters(text: str, where: str) -> str:
    if len(text) > MOST_LETTERS:
        raise ConfigError(f"{where} must have up to {MOST_LETTERS} letters, got {len(text)}: {quoted(text)}")
    if "\0" in text or not _encodes(text):
        raise ConfigError(f"{where} must be a text in UTF-8 without NUL, got {quoted(text)}")
    return text


def _encodes(text: str) -> bool:
    """Whether a text can be written: JSON may have half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
