"""Settings: frozen dataclasses, filled strictly from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import numbers
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dsir_metric.errors import ConfigError

__all__ = ["dump_toml", "from_dict", "load_toml", "to_dict"]

Config = TypeVar("Config")


def load_toml(path: str | Path, cls: type[Config]) -> Config:
    """Read the dataclass `cls` from a TOML file.

    Parameters
    ----------
    path : str or Path
        A TOML file; tables become nested dataclasses.
    cls : type
        A dataclass whose fields are bool, int, float, str, Path, Literal, tuples, mappings, unions or dataclasses.

    Returns
    -------
    instance of `cls`

    Raises
    ------
    ConfigError
        If the file cannot be read, is no TOML, has an unknown key or a value of the wrong type.
    """
    try:
        mapping = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no valid TOML ({error})") from error
    try:
        return from_dict(cls, mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_toml(config: object) -> str:
    """Text of a TOML file that `load_toml` reads back into the dataclass `config`; None is left out."""
    return "\n".join(_toml(to_dict(config), "")).lstrip() + "\n"


def _toml(table: Mapping[str, Any], name: str) -> Iterator[str]:
    """Lines of a table: its plain values first, then the tables in it."""
    inner = {key: value for key, value in table.items() if _holds_tables(value)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        title = f"{name}.{key}" if name else key
        for entry in value if isinstance(value, list) else [value]:
            yield f"\n[[{title}]]" if isinstance(value, list) else f"\n[{title}]"
            yield from _toml(entry, title)


def _holds_tables(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def from_dict(cls: type[Config], mapping: Mapping[str, object]) -> Config:
    """Build the dataclass `cls` from a mapping of the same shape; lists become tuples, whole numbers floats.

    Raises
    ------
    ConfigError
        On an unknown key (the nearest known one is named), a missing one, or a value of the wrong type.
    """
    return cast(Config, _dataclass(cls, mapping, ""))


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
    if isinstance(value, numbers.Real) and not isinstance(value, bool):  # NumPy's numbers are no JSON
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return str(value) if isinstance(value, Path) else value


def _dataclass(cls: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is a table of settings; {value!r} came")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise ConfigError(f"unknown setting {prefix}{key}{_nearest(str(key), list(fields))}")
    hints = get_type_hints(cls)
    given = {key: _convert(hints[key], item, f"{prefix}{key}") for key, item in value.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ConfigError(f"the setting {prefix}{name} is missing")
    return cls(**given)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _convert(hint: Any, value: object, where: str) -> object:
    """Check `value` against the type `hint` and give it in that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is one of {', '.join(map(repr, arguments))}; {value!r} came")
    if origin is tuple:
        return _tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table; {value!r} came")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, cast(type, hint)) else _dataclass(cast(type, hint), value, where)
    return _scalar(hint, value, where)


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
        raise ConfigError(f"{where} is a list; {value!r} came")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(value) != len(hints):
        raise ConfigError(f"{where} has {len(hints)} entries; {len(value)} came: {list(value)!r}")
    return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _scalar(hint: Any, value: object, where: str) -> object:
    if hint is Any or hint is object:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is of type {hint.__name__}; {value!r} came")
