"""TOML as plain tables: text of bounded size and depth in, text out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsir_metric.bounds import MOST_DEPTH
from dsir_metric.errors import ConfigError
from dsir_metric.files import read_text

__all__ = ["read_tables", "write_tables"]

_MOST_BYTES = 2_000_000  # a recipe may list twenty thousand scans
# Strings, closed or not, and comments; each alternative takes what it began with, so that the search is linear.
_TEXTS = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{0,5}'
    r"|'''(?:[^']|'(?!''))*+'{0,5}"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)
# tomllib needs memory that grows with the square of the number of names in a dotted key.
_DEEP_KEY = re.compile(rf"(?:\.[^.=,\[\]{{}}\n]*+){{{MOST_DEPTH}}}")


def read_tables(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, not yet judged.

    Raises
    ------
    ConfigError
        If the file cannot be read, is too large, too deep or no TOML.
    """
    try:
        text = read_text(path, _MOST_BYTES)
        if _DEEP_KEY.search(_TEXTS.sub("", text)):
            raise RecursionError
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deep; settings are tables of plain values and of lists") from error
    except ValueError as error:  # of tomllib, of UTF-8, of a number with thousands of digits
        reason = " ".join(str(error)[:200].partition(";")[0].split())  # after it Python tells how to lift its limit
        raise ConfigError(f"{path}: is no valid TOML ({reason})") from error


def write_tables(tables: Mapping[str, Any]) -> str:
    """Text that `read_tables` reads back; None is left out."""
    return "\n".join(_lines(tables, "")).lstrip() + "\n"


def _lines(table: Mapping[str, Any], name: str) -> Iterator[str]:
    """Lines of a table: its plain values first, then the tables in it."""
    inner = {key: value for key, value in table.items() if _holds_tables(value)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        title = f"{name}.{key}" if name else key
        for entry in value if isinstance(value, list) else [value]:
            yield f"\n[[{title}]]" if isinstance(value, list) else f"\n[{title}]"
            yield from _lines(entry, title)


def _holds_tables(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
