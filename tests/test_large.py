"""Volumes larger than memory: written piece by piece with the same bits, within a limit that is foretold and kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from itertools import permutations, product
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app
from dsir_metric_cli.options import size

from dsir_metric import geometry, io
from dsir_metric.errors import ConfigError, DataError
from dsir_metric.geometry import DisplacementField, Grid, jacobian_statistics
from dsir_metric.io import FileArray, components, open_components
from dsir_metric.metric.transforms import point_map
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import STAGES, RegisterConfig, pipeline, register
from dsir_metric.register.forecast import (
    finer_bytes,
    forecast_registration,
    open_representer,
    turning_bytes,
    within_memory,
)
from dsir_metric.represent import Representer, load_card
from dsir_metric.represent.forecast import forecast_representation
from dsir_metric.represent.plan import PROCESS_BYTES, make_plan
from dsir_metric.represent.tiling import choose_core, tiles

OBLIQUE = sitk.Euler3DTransform([0, 0, 0], 0.2, -0.1, 0.3).GetMatrix()


def scan(size: tuple[int, int, int]) -> sitk.Image:
    """Noise, size x, y, z, oblique."""
    values = np.random.default_rng(3).random(size[::-1], np.float32) * 900
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([1.0, 1.5, 2.0])
    image.SetOrigin([5.0, -8.0, 13.0])
    image.SetDirection(OBLIQUE)
    return image


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


# Tiles


@pytest.mark.parametrize("most", [2000, 4000, 9000])
@pytest.mark.parametrize("shape", [(20, 25, 30), (9, 40, 17)])
def test_no_core_that_fits_leaves_less_to_read(shape: tuple[int, int, int], most: int) -> None:
    def read(core: tuple[int, int, int]) -> tuple[int, int]:
        voxels = [tile.voxels for tile in tiles(shape, core, 4)]
        return sum(voxels), max(voxels)

    all_cores = product(*(range(4, n + 4, 4) for n in shape))
    best = min(total for total, largest in map(read, all_cores) if largest <= most)
    total, largest = read(choose_core(shape, 4, 4, most))
    assert (total, largest <= most) == (best, True)


def test_cores_do_not_become_all_halo() -> None:
    assert min(choose_core((300, 512, 512), 48, 8, 1)) == 8
    assert min(choose_core((300, 512, 512), 48, 8, 1, 32)) == 32


# Files


@pytest.mark.parametrize(
    "box",
    [
        (slice(0, 5), slice(0, 4), slice(0, 3)),
        (slice(1, 3), slice(2, 4), slice(0, 3)),
        (slice(1, 4), slice(0, 4), slice(1, 2)),
        (slice(4, 5), slice(1, 2), slice(2, 3)),
        (slice(None), slice(1, 3), slice(0, 2), slice(0, 1)),
    ],
)
def test_boxes_of_a_file_are_those_of_an_array(box: tuple[slice, ...]) -> None:
    random, shape = np.random.default_rng(0), (5, 4, 3, 2)
    expected = random.random(shape, np.float32)
    file = BytesIO(b"12345678" + expected.astype("<f4").tobytes())
    stored = FileArray(file, shape, 8)
    np.testing.assert_array_equal(stored[box], expected[box])
    values = np.flip(random.random(expected[box].shape, np.float32), 0)
    stored[box], expected[box] = values, values
    assert file.getvalue() == b"12345678" + expected.astype("<f4").tobytes()


def test_a_meta_image_is_its_array(tmp_path: Path) -> None:
    grid = Grid.of(scan((7, 6, 5)))
    values = np.random.default_rng(1).random((5, 6, 7, 24), np.float32)
    path = tmp_path / "x.mha"
    with open_components(path, grid, 24) as out:
        for z in range(5):
            out[z : z + 1, 0:4, 0:7] = values[z : z + 1, :4]
            out[z : z + 1, 4:6, 0:7] = values[z : z + 1, 4:]
        assert not path.exists()
    image = sitk.ReadImage(str(path))
    assert Grid.of(image).matches(grid, 1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    offset = path.stat().st_size - values.nbytes
    assert offset % 64 == 0
    np.testing.assert_array_equal(np.memmap(path, "<f4", "r", offset, values.shape), values)


def test_a_plane_is_one_too(tmp_path: Path) -> None:
    flat = sitk.Image([6, 4], sitk.sitkFloat32)
    flat.SetDirection([0.6, -0.8, 0.8, 0.6])
    flat.SetSpacing([0.5, 2.0])
    values = np.random.default_rng(1).random((1, 4, 6, 3), np.float32)
    with open_components(tmp_path / "x.mha", Grid.of(flat), 3) as out:
        out[0:1, 0:4, 0:6] = values
    image = sitk.ReadImage(str(tmp_path / "x.mha"))
    assert Grid.of(image).matches(Grid.of(flat))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values[0])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), DataError("stopped"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises((DataError, KeyboardInterrupt)), open_components(tmp_path / "x.mha", Grid((4, 4, 4)), 2):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_and_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(BytesIO):
        def write(self, data: object) -> int:
            return 3

    with pytest.raises(OSError, match="No space left"):
        FileArray(Full(), (4, 4))[0:1,] = np.zeros((1, 4), np.float32)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with (
        pytest.raises(DataError, match=r"x\.mha: needs 0\.0 GB of disk, 0\.0 GB are free") as caught,
        open_components(tmp_path / "x.mha", Grid((4, 4, 4)), 24),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_written_piece_by_piece(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.nrrd: cannot be written piece by piece; use one of \.mha"):
        open_components(tmp_path / "x.nrrd", Grid((4, 4, 4)), 24)


# Representations


@pytest.mark.parametrize("tile", [None, 8, 19])
@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
def test_what_is_streamed_has_the_bits_of_the_whole(
    model_file: Path, tmp_path: Path, tile: int | None, order: tuple[int, int, int]
) -> None:
    image = sitk.Flip(sitk.PermuteAxes(scan((37, 23, 30)), order), [True, False, tile is None])
    representer = Representer(model_file, "cpu", 1, tile)
    representer.write(representer.prepare(image), tmp_path / "x.mha")
    written, whole = sitk.ReadImage(str(tmp_path / "x.mha")), representer(image)
    assert Grid.of(written).matches(Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(written), whole.values)


@pytest.mark.parametrize("room", [40_000_000, 60_000_000])
def test_little_memory_gives_the_same_bits(model_file: Path, tmp_path: Path, room: int) -> None:
    image = scan((97, 51, 83))
    free, tight = (
        Representer(model_file, "cpu", 1, memory_bytes=m)
        for m in (None, PROCESS_BYTES + 4 * prod(image.GetSize()) + room)
    )
    plan = tight.plan(Grid.of(image), 4 * prod(image.GetSize()), streamed=True)
    assert (plan.scratch, plan.lacking_bytes) == (room == 40_000_000, 0)
    assert len(plan.feature_tiles) > 1
    tight.write(tight.prepare(image), tmp_path / "x.mha")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.mha"))), free(image).values)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mha"]


def test_a_plane_is_written_too(model_file: Path, tmp_path: Path) -> None:
    image, representer = (
        sitk.GaussianSource(sitk.sitkFloat32, [20, 15], [5, 4], [9, 6]),
        Representer(model_file, "cpu", 1),
    )
    representer.write(representer.prepare(image, plane=True), tmp_path / "x.mha")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.mha")))
    np.testing.assert_array_equal(written, representer(image).values[0])


def test_an_image_is_left_as_it_was(model_file: Path) -> None:
    image = scan((9, 8, 7))
    before = sitk.GetArrayFromImage(image)
    Representer(model_file, "cpu", 1).prepare(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), before)
    assert io.check_image(image, "image") is image  # a second handle would soon be a copy


def test_plans_keep_within_the_memory_or_say_what_lacks() -> None:
    card = load_card("default")
    for shape, memory, streamed in product(
        [(300, 512, 512), (120, 160, 160), (20, 300, 41)], range(400, 4000, 300), [False, True]
    ):
        held = 4 * prod(shape)
        plan = make_plan(card, shape, memory_bytes=memory * 10**6, held=held, streamed=streamed)
        features = 0 if plan.scratch else plan.feature_bytes
        used = PROCESS_BYTES + held + features + plan.tile_bytes
        assert used - plan.lacking_bytes <= memory * 10**6
        assert plan.lacking_bytes == max(0, used - memory * 10**6)
        assert plan.scratch <= streamed
        assert sum(prod(part.stop - part.start for part in tile.core) for tile in plan.image_tiles) == prod(shape)
        padded = max(tile.padded(card.multiple) for tile in plan.image_tiles)
        largest = padded, max(tile.voxels for tile in plan.feature_tiles)
        assert plan.tile_bytes == max(largest[0] * card.bytes_per_voxel, largest[1] * card.head_bytes_per_voxel)


def test_too_little_memory_says_how_much_lacks(model_file: Path, tmp_path: Path) -> None:
    representer = Representer(model_file, "cpu", 1, memory_bytes=PROCESS_BYTES)
    with pytest.raises(ConfigError, match=r"memory: 350 MB are too little for 30 x 23 x 37 voxels; allow \d+ MB more"):
        representer.write(representer.prepare(scan((37, 23, 30))), tmp_path / "x.mha")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="memory_bytes must be a whole number from 1 to"):
        Representer(model_file, "cpu", memory_bytes=0)


def test_a_forecast_keeps_the_limit_and_tells_the_disk() -> None:
    limit, grid = 2 * 10**9, Grid((512, 512, 300))
    representer = Representer("default", "cpu", 1, memory_bytes=limit)
    told = forecast_representation(representer, grid, streamed=True, memory_bytes=limit)
    assert 0.8 * limit < told.memory_bytes <= limit
    assert told.disk_bytes == (24 + 4) * 4 * 512 * 512 * 300
    assert told.seconds is None
    with pytest.raises(ConfigError, match=r"512 x 512 x 300 voxels need \d+ MB .* write \.mha, which needs less"):
        forecast_representation(representer, grid, streamed=False, memory_bytes=limit)


def test_time_goes_with_the_work() -> None:
    representer, grid = Representer("default", "cpu", 1), Grid((200, 200, 200))
    plan = representer.plan(grid, 0)
    half = replace(plan, image_tiles=plan.image_tiles[:1], feature_tiles=())
    assert plan.work[0] >= 200**3
    some, more = representer.seconds(half), representer.seconds(plan, plan, plan)
    assert some is not None
    assert more is not None
    assert more > 2 * some > 0


_LIMIT_MB = 560
_MEASURE = f"""
import sys
from dsir_metric.represent import Representer
from test_large import scan
representer = Representer(sys.argv[1], "cpu", 1, memory_bytes={_LIMIT_MB}_000_000)
representer.write(representer.prepare(scan((144, 128, 120))), sys.argv[2])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # ru_maxrss would be that of pytest, which starts it, if that is larger


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_stays_below_the_limit(model_file: Path, tmp_path: Path) -> None:
    card = load_card(model_file)
    assert PROCESS_BYTES + 144 * 128 * 120 * card.head_bytes_per_voxel > 1.5 * _LIMIT_MB * 10**6  # as a single tile
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", _MEASURE, str(model_file), str(tmp_path / "x.mha")]
    answer = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert 1024 * int(answer.stdout) < _LIMIT_MB * 10**6


# Registrations


def test_the_finest_voxels_that_fit_are_taken() -> None:
    fixed, moving = Grid((300, 300, 200)), Grid((256, 256, 180), (1.0, 1.0, 1.2))
    for memory in (1_500_000_000,):
        config = RegisterConfig(memory_bytes=memory, threads=1)
        representer = open_representer(config, fixed, moving)
        spacing, remark = within_memory(config, fixed, moving, representer)
        assert f"{memory / 1e6:.0f} MB are allowed: voxels of {spacing:g} mm are taken instead" in remark
        told = forecast_registration(config, fixed, moving, representer)
        assert 0.8 * memory < told.memory_bytes <= memory
        assert told.advice[0] == remark
        with pytest.raises(ConfigError, match=r"take voxels of [\d.]+ mm \(--spacing\)") as caught:
            within_memory(replace(config, spacing_mm=spacing / 1.03), fixed, moving, representer)
        assert "\n" not in str(caught.value)
        offered = float(str(caught.value).split("voxels of ")[-1].split()[0])
        asked = replace(config, spacing_mm=offered)
        assert within_memory(asked, fixed, moving, representer) == (offered, "")
        assert spacing / 1.03 < offered < 1.03 * spacing


def test_enough_memory_changes_nothing() -> None:
    grid = Grid((100, 100, 100))
    config = RegisterConfig(memory_bytes=4 * 10**9, threads=1)
    assert within_memory(config, grid, grid, open_representer(config, grid, grid)) == (1.0, "")


def test_no_voxels_fit() -> None:
    config, grid = RegisterConfig(memory_bytes=600 * 10**6, threads=1), Grid((300, 300, 200))
    with pytest.raises(ConfigError, match=r"and larger ones \d+ MB at least: allow more"):
        within_memory(config, grid, grid, open_representer(config, grid, grid))


@pytest.mark.parametrize("shared", [False, True])
def test_no_voxels_of_a_thin_slab_fit(shared: bool) -> None:
    """Voxels that leave it a single slice are not tried, and what is said is about memory."""
    config = RegisterConfig(memory_bytes=700 * 10**6, threads=1)
    slab, whole = Grid((250, 250, 8)), Grid((300, 300, 200))
    with pytest.raises(ConfigError, match=r"MB are allowed, and larger ones \d+ MB at least: allow more"):
        within_memory(config, slab, whole, open_representer(config, slab, whole), shared=shared)


def test_memory_is_kept_by_sitk_alone() -> None:
    with pytest.raises(ConfigError, match="only sitk keeps to a limit"):
        RegisterConfig(backend="torch", memory_bytes=10**9)


def test_a_turn_is_left_out_where_memory_is_short() -> None:
    grid, turned = Grid((200, 200, 200)), Grid((260, 260, 200), direction=tuple(OBLIQUE))
    working = grid.resampled(2.0), grid.resampled(2.0)
    for memory, expected in ((3 * 10**9, True), (10**9, False)):
        config = RegisterConfig(memory_bytes=memory, threads=1)
        make = open_representer(config, grid, grid)
        needed = turning_bytes(grid, grid, working, turned.resampled(2.0), make)
        assert (needed <= memory) is expected


def test_a_turn_that_was_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(32, 6.0, rotation_deg=(0.0, 0.0, 14.0), translation_mm=(0.0, 0.0, 0.0), amplitude_mm=2.0)
    monkeypatch.setattr(pipeline, "turning_bytes", lambda *_, **__: 10**12)
    start, config = (
        sitk.Euler3DTransform((0, 0, 0), 0.0, 0.0, np.deg2rad(14)),
        RegisterConfig(stages=("rigid", "affine"), threads=1, memory_bytes=10**11),
    )
    result = register(pair.fixed, pair.moving, config, initial_transform=start)
    told = [line for line in result.warnings if "degrees askew; more memory would let it" in line]
    assert len(told) == 1
    assert result.details["turned_deg"] == 0.0
    assert result.details["again_bytes"] == [10**12]


def test_smaller_voxels_that_were_left_out_are_told(monkeypatch: pytest.MonkeyPatch, pair: PhantomPair) -> None:
    config = RegisterConfig(stages=("rigid", "deformable", "refine"), threads=1, memory_bytes=10**11)
    needed = register(pair.fixed, pair.moving, config).details["again_bytes"]
    assert len(needed) == 1
    least = replace(config, memory_bytes=needed[0])
    assert register(pair.fixed, pair.moving, least).warnings == ()
    monkeypatch.setattr(pipeline, "finer_bytes", lambda *_, **__: 10**12)
    result = register(pair.fixed, pair.moving, config)
    assert [s.name for s in result.stages] == ["rigid", "deformable"]
    assert result.warnings == ("the refine stage was left out: 1000000 MB of memory (--memory) would let it run",)
    assert result.details["again_bytes"] == [10**12]


def test_the_forecast_knows_the_smaller_voxels() -> None:
    """Where they fit into the memory, or none is named."""
    grid = Grid((90, 110, 90), (2.0, 2.0, 2.0))
    config = RegisterConfig(threads=1)
    make = open_representer(config, grid, grid)
    without = forecast_registration(replace(config, stages=STAGES[:-1]), grid, grid, make, timed=True)
    told = forecast_registration(config, grid, grid, make, timed=True)
    assert told.memory_bytes == finer_bytes(grid, grid, (grid, grid), 1.4, make) > without.memory_bytes
    assert told.seconds is not None
    assert without.seconds is not None
    assert told.seconds > 1.2 * without.seconds
    short = replace(config, memory_bytes=told.memory_bytes - 1)
    assert forecast_registration(short, grid, grid, make).memory_bytes == without.memory_bytes


def test_register_says_what_the_memory_cost(tmp_path: Path, pair: PhantomPair) -> None:
    paths = tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"
    for image, path in zip((pair.fixed, pair.moving), paths, strict=True):
        io.write_image(image, path)
    arguments = ["register", *paths, "-o", tmp_path / "out", "--threads", 1, "--stages", "centre", "-q"]
    memory = ["--memory", "525MB"]
    code, out, _ = call(*arguments, *memory, "--dry-run")
    assert code == 0
    assert "mm are taken instead" in out
    assert not (tmp_path / "out").exists()
    assert call(*arguments, *memory)[0] == 0
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["working_spacing_mm"] > 4.5
    assert "mm are taken instead" in report["warnings"][0]
    code, _, err = call(*arguments, *memory, "--spacing", 4.5)
    assert (code, err.count("\n")) == (2, 1)
    assert "error: voxels of 4.5 mm need" in err


def test_jacobians_come_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((6, 5, 9), (1.0, 2.0, 1.5), (3.0, 4.0, 5.0), tuple(OBLIQUE))
    field = DisplacementField(np.random.default_rng(4).random((9, 5, 6, 3)), grid)
    whole, transform = (
        field.jacobian_determinant(),
        sitk.AffineTransform([1.1, 0.1, 0, 0, 0.9, 0, 0.2, 0, 1], [1, 2, 3]),
    )
    expected = DisplacementField.from_transform(transform, grid).jacobian_statistics()
    for voxels in (1, 60, 1000):
        monkeypatch.setattr(geometry.field, "_SLAB_VOXELS", voxels)
        np.testing.assert_array_equal(field.jacobian_determinant(), whole)
        found = jacobian_statistics(point_map(transform).map, grid)
        assert found == pytest.approx(expected, abs=1e-6)


# The command line


@pytest.mark.parametrize(
    ("text", "expected"), [("2GB", 2 * 10**9), ("1500MB", 15 * 10**8), ("2GiB", 2 << 30), ("1.5 g", 15 * 10**8)]
)
def test_sizes(text: str, expected: int) -> None:
    assert size(None, None, text) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["much", "2 elephants", "-1GB", "GiB", "2iB", ""])
@pytest.mark.parametrize("command", [["represent", "a.nii"], ["register", "a.nii", "b.nii"]])
def test_what_is_no_size_is_one_line(text: str, command: list[str]) -> None:
    code, _, err = call(*command, "-o", "x", "--memory", text)
    assert (code, err) == (2, f"error: {text!r} is no size; write it as 800MB, 10GB or 2GiB\n")


def test_represent_tells_and_streams(tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "scan.nii.gz", tmp_path / "x.mha"
    io.write_image(scan((30, 20, 25)), path)
    arguments = ["represent", path, "-o", out, "--model", model_file, "--threads", 1]
    code, told, _ = call(*arguments, "--dry-run")
    assert code == 0
    assert [line.split(":")[0] for line in told.splitlines()] == ["voxels", "memory", "disk", "time", "less memory"]
    assert "disk: 1 MB" in told
    assert not out.exists()
    code, _, err = call(*arguments, "--memory", "300MB")
    assert (code, err.count("\n")) == (2, 1)
    assert "voxels need" in err
    with monkeypatch.context() as patch:
        patch.setattr(components.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        code, _, err = call(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "GB are free" in err
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]
    assert call(*arguments, "--memory", "1GB")[0] == 0
    whole = Representer(model_file, "cpu", 1)(io.read_image(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out))), whole.values)
