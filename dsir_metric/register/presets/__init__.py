"""Settings that ship, by name: TOML files of `RegisterConfig` in this folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsir_metric.bounds import quoted
from dsir_metric.config import from_dict
from dsir_metric.errors import ConfigError
from dsir_metric.register.config import RegisterConfig
from dsir_metric.tomlfile import read_tables

__all__ = ["load_settings", "presets"]


def presets() -> dict[str, Path]:
    """Names and files."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def load_settings(source: str | Path, options: Mapping[str, Any] | None = None) -> RegisterConfig:
    """Settings from a TOML file, or those that ship under a name.

    Parameters
    ----------
    source : str or Path
        A name of `presets`, or a TOML file. A file of that name goes before.
    options : mapping, optional
        Settings that replace those of the file, tables as mappings, before the whole is judged: a file may have the
        table of a backend that an option names.

    Raises
    ------
    ConfigError
        If there is neither, or the settings are not right, see `load_toml`.
    """
    shipped = presets()
    if not os.path.lexists(source):
        if str(source) not in shipped:
            known = ", ".join(shipped)
            raise ConfigError(f"there are no settings {quoted(str(source))}; give a TOML file or one of {known}")
        source = shipped[str(source)]
    tables = _merged(read_tables(source), options or {})
    try:
        return from_dict(RegisterConfig, tables)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _merged(tables: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `options` in their place; tables are merged, not replaced."""
    merged = dict(tables)
    for name, value in options.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged
