"""A table of pairs: read, and checked before anything starts."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path

from dsir_metric import io
from dsir_metric.batch.job import INPUTS, Job
from dsir_metric.bounds import quoted
from dsir_metric.errors import ConfigError, DataError, DsirError, GeometryError
from dsir_metric.files import read_text
from dsir_metric.geometry import Grid
from dsir_metric.represent.pair import working_grids

__all__ = ["COLUMNS", "TABLE", "Pair", "read_pairs"]

COLUMNS = ("id", *INPUTS)
TABLE = "table.csv"  # beside the folders of the pairs
_ID = re.compile(r"\w[\w.+-]*")
_DELIMITERS = ",;\t"  # spreadsheets write the second where a comma is a decimal point
_MOST_ID_BYTES = 200
_MOST_BYTES = 500_000_000  # of a table; a million rows of long paths
_KEPT = 100_000  # headers; about a kilobyte each
_NO_ID = re.compile(r"^\W|[^\w.+-]")


@dataclass(frozen=True)
class Pair:
    """One row of a study.

    Parameters
    ----------
    job : Job
        Absolute paths; the output folder has the pair's id as its name.
    voxels : int
        Of both scans together.
    working_voxels : int
        Of both representations together.
    row : str
        Where it stands, such as "pairs.csv, row 2".
    grids : tuple of Grid
        Of the fixed and the moving scan.
    """

    job: Job
    voxels: int
    working_voxels: int
    row: str = ""
    grids: tuple[Grid, ...] = ()

    @property
    def id(self) -> str:
        """Name of the pair."""
        return self.job.output.name


def read_pairs(
    table: str | Path,
    output: str | Path,
    spacing_mm: float | None = None,
    ending: str = ".nii.gz",
    fill: float | None = None,
    reorient: io.Reorient | None = None,
    on_row: Callable[[int], None] = lambda _: None,
) -> tuple[Pair, ...]:
    """Read a CSV file of pairs; look at every header it names.

    Parameters
    ----------
    table : str or Path
        UTF-8, cells between commas, semicolons or tabs; a header with `fixed`, `moving` and any others of `COLUMNS`,
        then a row a pair. Relative paths start at the folder of the table; an empty cell is none. Without ids a pair is
        called `MOVING_to_FIXED`, with _ in the place of what no id may have.
    output : str or Path
        Each pair gets a folder in it.
    spacing_mm : float, optional
        Voxel size to work at, see `working_grids`.
    ending, fill
        Of the images that are written, see `Job`.
    reorient : {"nearest"}, optional
        See `Job`.
    on_row : callable
        Receives the number of each row that has been checked: a long table with a header to read in every row takes
        minutes.

    Raises
    ------
    DataError
        If the table cannot be read or is empty.
    ConfigError, DataError, ShapeError, GeometryError
        At the first row that is wrong: an unknown column, a missing or unreadable file, a mask or labels on another
        grid than their scan, an id that is no file name or comes twice. The message names the row as the file counts.
    """
    path, folder = Path(table), Path(output).absolute()
    pairs: dict[str, Pair] = {}
    rows: dict[str, int] = {}
    headers = _Headers(spacing_mm, reorient)
    for number, row in _rows(path):
        told = f"{path}, row {number}"
        try:
            job = _job(row, path.absolute().parent, folder, ending, fill, reorient)
            name = job.output.name
            if name.casefold() in rows:
                raise ConfigError(
                    f"the id {name!r} is that of row {rows[name.casefold()]} already; give each row one of its own in "
                    "a column id"
                )
            grids = headers.check(job)
            pairs[name] = Pair(job, _sum(grids), headers.working_voxels(*grids), told, grids)
            rows[name.casefold()] = number
            on_row(number)
        except DsirError as error:
            raise type(error)(f"{told}: {error}") from error
    if not pairs:
        raise DataError(f"{path}: has no pairs; a header and a row for each pair are expected")
    return tuple(pairs.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows that are not empty, as column to cell, with their numbers in the file."""
    try:
        lines = StringIO(read_text(path, _MOST_BYTES), newline="")
        delimiter = max(_DELIMITERS, key=lines.readline().count)
        lines.seek(0)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(header, path)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, row {reader.line_num}: has {len(cells)} cells, the header has {len(header)}; put "
                    "quotes around a path with a comma"
                )
            if any("\0" in cell or len(cell.strip().splitlines()) > 1 for cell in cells):
                raise DataError(f"{path}, row {reader.line_num}: has a NUL or a line break in a cell; mend the quotes")
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a CSV file of pairs") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no CSV in UTF-8 ({error})") from error


def _check_header(header: Sequence[str], path: Path) -> None:
    for name in header:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name[:80], COLUMNS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"{path}, row 1: the column {quoted(name)} is unknown; {hint}there are {', '.join(COLUMNS)}"
            )
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}, row 1: the column {twice} comes twice; leave one out")
    missing = [name for name in ("fixed", "moving") if name not in header]
    if missing:
        raise ConfigError(f"{path}, row 1: has no column {missing[0]}; a header such as `id,fixed,moving` is expected")


def _job(
    row: dict[str, str], start: Path, output: Path, ending: str, fill: float | None, reorient: io.Reorient | None
) -> Job:
    files = {name: start / row[name] for name in INPUTS if row.get(name)}
    for name in ("fixed", "moving"):
        if name not in files:
            raise DataError(f"the cell {name} is empty; give the file of a scan")
    name = row.get("id") or _NO_ID.sub("_", f"{_stem(files['moving'])}_to_{_stem(files['fixed'])}")
    if not _ID.fullmatch(name) or len(name.encode()) > _MOST_ID_BYTES or name.casefold() == TABLE:
        raise ConfigError(
            f"the id {quoted(name)} cannot name a folder; use up to {_MOST_ID_BYTES} letters, digits, and . _ + - "
            "after the first"
        )
    return Job(output=output / name, ending=ending, fill=fill, reorient=reorient, **files)


def _stem(path: Path) -> str:
    name = io.store_of(path).name if io.is_zarr(path) else path.name
    return name.removesuffix(".gz").removesuffix(".zarr").rsplit(".", 1)[0]


class _Headers:
    """The headers of the files of a table, each read once, and what follows from those of a pair of scans."""

    def __init__(self, spacing_mm: float | None, reorient: io.Reorient | None) -> None:
        self._grid_of = lru_cache(_KEPT)(partial(io.read_grid, reorient=reorient))  # a template is in every row
        self._check_transform = lru_cache(_KEPT)(_check_transform)

        def working_voxels(fixed: Grid, moving: Grid) -> int:
            return _sum(working_grids(fixed, moving, spacing_mm, shared=True))

        self.working_voxels = lru_cache(_KEPT)(working_voxels)

    def check(self, job: Job) -> tuple[Grid, Grid]:
        """Grids of the two scans; every header of a pair is looked at on the way."""
        grids = {name: self._grid_of(path) for name, path in job.inputs.items() if name != "initial_transform"}
        for name in ("fixed_mask", "moving_mask", "fixed_labels"):
            scan = name.split("_")[0]
            if name in grids and not grids[name].matches(grids[scan]):
                raise GeometryError(
                    f"{job.inputs[name]}: lies on another grid (size {grids[name].size}) than the {scan} scan (size "
                    f"{grids[scan].size}); resample it, nearest neighbour, onto that scan"
                )
        if job.initial_transform is not None:
            self._check_transform(job.initial_transform)
        return grids["fixed"], grids["moving"]


def _check_transform(path: Path) -> None:
    io.read_transform(path)


def _sum(grids: tuple[Grid, Grid]) -> int:
    return sum(math.prod(grid.size) for grid in grids)
