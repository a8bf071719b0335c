"""Representations on disk: found again, bounded, mended, and never in the way."""

import resource
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair
from dsir_metric.represent import Cache, IntensityRule, Representation, Representer, represent_pair
from dsir_metric.represent.pair import working_grids

GRID = Grid((8, 6, 4))


class Maker:
    """Makes a representation and counts how often."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.times, self.slow_s = 0, slow_s
        values = np.random.default_rng(3).normal(size=(4, 6, 8, 24))
        self.values = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)

    def __call__(self) -> Representation:
        self.times += 1
        sleep(self.slow_s)
        return Representation(self.values.copy(), GRID, {"model": "m", "intensity_low": 0.1})


ENTRY_BYTES = 4 * 6 * 8 * 24 * 2 + 64 + len('{"model": "m", "intensity_low": 0.1}\n')


def entries(cache: Cache) -> list[str]:
    return sorted(p.stem for p in cache.folder.glob("*.dsir"))


def test_what_was_made_is_found_and_equal_within_half_precision(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path / "cache"), Maker()
    first, second = (cache.get("ab", GRID, make) for _ in range(2))
    assert make.times == 1
    assert np.array_equal(first.values, second.values)
    assert 0 < np.abs(first.values - make.values).max() < 2.5e-4
    assert second.values.dtype == np.float32
    assert (second.provenance, second.grid) == ({"model": "m", "intensity_low": 0.1}, GRID)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-5],
        lambda b: b[:30],
        lambda b: b"",
        lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:],
        lambda b: b.replace(b'"m"', b'"n"'),
    ],
    ids=["cut", "cut in its head", "empty", "a bit turned", "another provenance"],
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage) -> None:
    cache, make = Cache(tmp_path), Maker()
    whole = cache.get("ab", GRID, make)
    path = tmp_path / "ab.dsir"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert np.array_equal(cache.get("ab", GRID, make).values, whole.values)
    assert make.times == 2
    assert path.read_bytes() == content


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    cache, make, other = Cache(tmp_path), Maker(), Maker()
    cache.get("ab", GRID, make)
    other.values = -make.values
    (tmp_path / "cd.dsir").write_bytes((tmp_path / "ab.dsir").read_bytes())
    assert np.array_equal(cache.get("cd", GRID, other).values, -cache.get("ab", GRID, make).values)
    assert (make.times, other.times) == (1, 1)


def test_a_cache_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, make = Cache(tmp_path), Maker()
    cache.get("ab", GRID, make)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", refuse)
    cache.get("ab", GRID, make)
    assert make.times == 1


CROWD = """
import sys, numpy as np
from pathlib import Path
from dsir_metric.geometry import Grid
from dsir_metric.represent import Cache, Representation
first, folder, most = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
grid = Grid((32, 32, 32))
made = Representation(np.full((32, 32, 32, 24), 0.2, np.float32), grid, {})
for k in range(12):
    Cache(folder, most).get(f"{first}{k:02}", grid, lambda: made)
"""


def test_the_bound_holds_when_several_write(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    most = 3 * (32**3 * 24 * 2 + 200)
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(k), str(tmp_path), str(most)]) for k in range(3)]
    largest = 0
    while any(process.poll() is None for process in crowd):
        sizes = []
        for path in list(tmp_path.glob("*.dsir")):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        largest = max(largest, sum(sizes))
    assert [process.returncode for process in crowd] == [0, 0, 0]
    assert 0 < largest <= most
    assert len(entries(Cache(tmp_path))) == 3


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path, 3 * ENTRY_BYTES), Maker()
    for key in ("a1", "b2", "c3"):
        cache.get(key, GRID, make)
        sleep(0.01)
    cache.get("a1", GRID, make)
    assert make.times == 3
    cache.get("d4", GRID, make)
    assert entries(cache) == ["a1", "c3", "d4"]


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path, ENTRY_BYTES - 1), Maker()
    cache.get("a1", GRID, make)
    assert entries(cache) == []
    with pytest.raises(ConfigError, match="most_bytes must be a whole number from 1 to"):
        Cache(tmp_path, 0)


def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Maker()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENTRY_BYTES // 2, hard))
    try:
        with pytest.warns(RuntimeWarning, match="cannot be kept") as told:
            found = [cache.get(key, GRID, make).values for key in ("a1", "b2")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len({str(w.message) for w in told}) == 1
    assert np.array_equal(found[0], found[1])
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_a_folder_that_cannot_be_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        Cache(tmp_path / "file").get("a1", GRID, Maker())


def test_one_makes_it_while_others_wait(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    cache, make = Cache(tmp_path), Maker(slow_s=0.1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cache.get("ab", GRID, make).values, range(4)))
    assert make.times == 1
    assert all(np.array_equal(f, found[0]) for f in found)


def test_the_key_tells_everything_apart(volume: sitk.Image) -> None:
    cache, rule, grid = Cache(Path("none")), IntensityRule("mr", 0.0, 1.0), Grid.of(volume)
    other, moved = sitk.Image(volume), sitk.Image(volume)
    other[3, 4, 5] += 1
    moved.SetOrigin((1.0, 2.0, 3.0))
    keys = {
        cache.key(volume, grid, "hash", rule),
        cache.key(other, grid, "hash", rule),
        cache.key(moved, grid, "hash", rule),
        cache.key(volume, grid.resampled(2.0), "hash", rule),
        cache.key(volume, grid, "other", rule),
        cache.key(volume, grid, "hash", replace(rule, low=0.1)),
    }
    assert len(keys) == 6
    assert cache.key(sitk.Image(volume), Grid.of(volume), "hash", replace(rule)) in keys


def test_a_scan_has_one_grid_whatever_its_partner_and_its_side(volume: sitk.Image) -> None:
    grid, upright = Grid.of(volume), Grid((30, 30, 30), (2.1, 2.0, 1.9))
    first, second = working_grids(grid, upright, shared=True)
    assert working_grids(upright, grid, shared=True) == (second, first)
    assert working_grids(grid, replace(upright, spacing_mm=(2.0, 2.0, 2.05)), shared=True)[0] == first
    assert first.direction == Grid((1, 1, 1)).direction
    assert first.spacing_mm[0] == pytest.approx(2.0)
    assert working_grids(grid, upright, 3.3, shared=True)[0].spacing_mm == (3.3, 3.3, 3.3)
    corners = np.array([[x, y, z] for x in (0, 11) for y in (0, 9) for z in (0, 7)])
    index = first.to_index(grid.to_physical(corners))
    assert index.min() > -1
    assert np.all(index.max(axis=0) < first.size)


def test_the_pair_is_what_it_is_without_the_cache(pair: PhantomPair, tmp_path: Path) -> None:
    representer, cache = Representer(threads=1), Cache(tmp_path)
    plain = represent_pair(pair.fixed, pair.moving, representer, spacing_mm=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, found = (
            represent_pair(pair.fixed, pair.moving, representer, spacing_mm=9, shared=True, cache=cache)
            for _ in range(2)
        )
    assert len(entries(cache)) == 2
    for one, other in zip(plain * 2, kept + found, strict=True):
        assert np.array_equal(one.mixture, other.mixture)
        assert np.abs(one.values - other.values).max() < 5e-4
        assert one.grid.matches(other.grid)
        assert one.provenance == other.provenance
