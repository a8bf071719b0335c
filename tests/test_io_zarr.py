"""OME-Zarr: what is written comes back, what others wrote lies where they say, and what is broken is refused."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsir_metric import io
from dsir_metric.batch.pairs import read_pairs
from dsir_metric.batch.work import Work
from dsir_metric.errors import DataError, DsirError, GeometryError, MissingDependencyError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.packages import Package
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig
from dsir_metric.represent import Cache, Representation, Representer

zarr = pytest.importorskip("zarr")

QUICK = ["--stages", "centre", "--spacing", "6", "--threads", "1", "-q"]
VALUES = np.arange(1, 121, dtype=np.int16).reshape(4, 5, 6)


def scaled(*scale: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(scale)}


def moved(*translation: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(translation)}


SCALE = scaled(3.0, 2.0, 1.5)
LPS = {"x": "right-to-left", "y": "anterior-to-posterior", "z": "inferior-to-superior"}


@pytest.fixture(autouse=True)
def _unexpected_warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning, module="dsir_metric")
        warnings.filterwarnings("ignore", message="OME-Zarr has no direction")
        yield


def axis(name: str, unit: str | None = "millimeter", orientation: str | None = None) -> dict[str, Any]:
    said: dict[str, Any] = {"name": name, "type": {"c": "channel", "t": "time"}.get(name, "space")}
    if said["type"] == "space" and unit:
        said["unit"] = unit
    if orientation:
        said["orientation"] = {"type": "anatomical", "value": orientation}
    return said


def volume_axes(unit: str | None = "millimeter", **orientations: str) -> list[dict[str, Any]]:
    return [axis(n, unit, (LPS | orientations)[n]) for n in "zyx"]


def store(
    path: Path,
    levels: dict[str, tuple[NDArray[Any], list[dict[str, Any]]]] | None = None,
    axes: list[dict[str, Any]] | None = None,
    version: str = "0.5",
    **more: Any,
) -> Path:
    """A store as somebody else writes it."""
    levels = {"0": (VALUES, [SCALE])} if levels is None else levels
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    for name, (values, _) in levels.items():
        chunks = tuple(max(n // 2, 1) for n in values.shape)
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
    datasets = [{"path": name, "coordinateTransformations": steps} for name, (_, steps) in levels.items()]
    image = {"axes": volume_axes() if axes is None else axes, "datasets": datasets}
    if version == "0.4":
        group.attrs.update({"multiscales": [image | {"version": version}]} | more)
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]} | more
    return path


def array_of(image: sitk.Image) -> NDArray[Any]:
    return sitk.GetArrayFromImage(image)


def same(back: sitk.Image, image: sitk.Image) -> None:
    """The same voxels of the same type in the same places."""
    assert back.GetPixelID() == image.GetPixelID()
    np.testing.assert_array_equal(array_of(back), array_of(image))
    assert back.GetSpacing() == image.GetSpacing()
    assert back.GetDirection() == image.GetDirection()
    reach = np.abs(image.GetOrigin()).max() + 1.0
    np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), rtol=0, atol=1e-13 * reach)


# ---- what is written comes back


@st.composite
def images(draw: st.DrawFn) -> sitk.Image:
    """2-D or 3-D, any numbers, one or several components, flipped, permuted or oblique."""
    dims = draw(st.sampled_from([2, 3]))
    size = draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims))
    components = draw(st.sampled_from([1, 1, 3]))
    kind = draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = (*size[::-1], *([components] if components > 1 else []))
    values = (rng.standard_normal(shape) * 50 if kind[0] == "f" else rng.integers(0, 100, shape)).astype(kind)
    image = sitk.GetImageFromArray(values, isVector=components > 1)
    finite = st.floats(-1e4, 1e4)
    image.SetSpacing(draw(st.lists(st.floats(1e-4, 50), min_size=dims, max_size=dims)))
    image.SetOrigin(draw(st.lists(finite, min_size=dims, max_size=dims)))
    flips = np.diag(draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=dims, max_size=dims)))
    order = draw(st.permutations(range(dims)))
    angles = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.2, -0.1, 0.3), (0.0, 0.0, 1e-7)]))
    turn = np.reshape(sitk.Euler3DTransform([0, 0, 0], *angles).GetMatrix(), (3, 3))
    if dims == 2:
        turn = np.reshape(sitk.Euler2DTransform([0, 0], angles[2]).GetMatrix(), (2, 2))
    image.SetDirection((turn @ flips[order]).ravel().tolist())
    return image


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=images(), version=st.sampled_from(["0.4", "0.5"]))
def test_an_image_comes_back_with_its_voxels_and_geometry(tmp_path: Path, image: sitk.Image, version: Any) -> None:
    path = tmp_path / "scan.ome.zarr"
    io.write_zarr(image, path, version=version)
    same(io.read_zarr(path), image)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_read_and_write_image_take_a_store_for_a_file(tmp_path: Path, volume: sitk.Image) -> None:
    path = tmp_path / "scan.ome.zarr"
    io.write_image(volume, path)
    same(io.read_image(path), volume)
    assert io.read_grid(path).matches(Grid.of(volume))
    labels = sitk.Cast(volume > 50, sitk.sitkUInt8)
    stored, plane = tmp_path / "labels.ome.zarr", tmp_path / "plane.ome.zarr"
    io.write_image(labels, stored)
    np.testing.assert_array_equal(array_of(io.read_labels(stored)), array_of(labels))
    np.testing.assert_array_equal(array_of(io.read_mask(stored, Grid.of(volume))), array_of(labels))
    io.write_image(sitk.Image([12, 10], sitk.sitkFloat32), plane)
    for read in (io.read_image, io.read_grid):
        with pytest.raises(ShapeError, match=r"has 2 axes \(12, 10\)"):
            read(plane)


def metadata(path: Path) -> dict[str, Any]:
    """Attributes of the group, read without us."""
    return dict(zarr.open_group(path, mode="r").attrs)


def test_other_programs_find_what_the_specification_says(tmp_path: Path, volume: sitk.Image) -> None:
    flipped = sitk.Image(volume)
    flipped.SetDirection((0, -1, 0, 0, 0, 1, -1, 0, 0))
    for version, place in (("0.5", lambda a: a["ome"]), ("0.4", lambda a: a)):
        path = tmp_path / f"{version}.ome.zarr"
        io.write_zarr(sitk.Compose(flipped, flipped), path, version=version, provenance={"model": "m"})
        said = metadata(path)
        image = place(said)["multiscales"][0]
        assert [a["name"] for a in image["axes"]] == ["c", "z", "y", "x"]
        assert [a["type"] for a in image["axes"]] == ["channel", "space", "space", "space"]
        assert {a["unit"] for a in image["axes"][1:]} == {"millimeter"}
        assert [a["orientation"]["value"] for a in image["axes"][1:]] == [
            "anterior-to-posterior",
            "left-to-right",
            "superior-to-inferior",
        ]
        scale, translation = image["datasets"][0]["coordinateTransformations"]
        assert scale == scaled(1.0, 3.0, 2.0, 1.5)
        assert translation == moved(0.0, 7.0, 20.0, -33.0)  # along P, R, I
        assert said["dsir_metric"] == {"direction": [[0, -1, 0], [0, 0, 1], [-1, 0, 0]], "provenance": {"model": "m"}}
        array = zarr.open_array(path / "0", mode="r")
        assert array.metadata.zarr_format == (3 if version == "0.5" else 2)
        np.testing.assert_array_equal(np.moveaxis(array[...], 0, -1), array_of(sitk.Compose(flipped, flipped)))
    assert (tmp_path / "0.4.ome.zarr" / "0" / "0" / "0" / "0" / "0").is_file()  # a folder an axis


def test_a_direction_that_others_do_not_see_is_told(tmp_path: Path, volume: sitk.Image) -> None:
    with pytest.warns(RuntimeWarning, match="OME-Zarr has no direction cosines"):
        io.write_image(volume, tmp_path / "scan.ome.zarr")
    assert all("orientation" not in a for a in metadata(tmp_path / "scan.ome.zarr")["ome"]["multiscales"][0]["axes"])
    volume.SetDirection(np.eye(3).ravel().tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        io.write_image(volume, tmp_path / "scan.ome.zarr")
        io.read_image(tmp_path / "scan.ome.zarr")


# ---- what others wrote


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_each_level_has_its_own_scale_and_translation(tmp_path: Path, version: str) -> None:
    coarse = VALUES[::2, ::2, ::2].copy()
    levels = {
        "full": (VALUES, [SCALE, moved(10.0, -20.0, 30.0)]),
        "half/image": (coarse, [scaled(6.0, 4.0, 3.0), moved(11.5, -19.0, 30.75)]),
    }
    path = store(tmp_path / "scan.ome.zarr", levels, version=version)
    fine, half = io.read_zarr(path), io.read_zarr(path / "half" / "image")
    np.testing.assert_array_equal(array_of(fine), VALUES)
    assert (fine.GetSpacing(), fine.GetOrigin()) == ((1.5, 2.0, 3.0), (30.0, -20.0, 10.0))
    np.testing.assert_array_equal(array_of(half), coarse)
    assert (half.GetSpacing(), half.GetOrigin()) == ((3.0, 4.0, 6.0), (30.75, -19.0, 11.5))
    same(io.read_zarr(path / "full"), fine)


def test_units_become_mm_and_the_outer_transformation_comes_last(tmp_path: Path) -> None:
    levels = {"0": (VALUES, [SCALE, moved(1.0, 2.0, 3.0)])}
    axes = [axis("z", "centimeter", LPS["z"]), axis("y", "micrometer", LPS["y"]), axis("x", "inch", LPS["x"])]
    path = store(tmp_path / "scan.zarr", levels, axes)
    image = io.read_zarr(path)
    assert image.GetSpacing() == pytest.approx((1.5 * 25.4, 0.002, 30.0))
    assert image.GetOrigin() == pytest.approx((3 * 25.4, 0.002, 10.0))
    group = zarr.open_group(path, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [
        scaled(1.0, 1000.0, 2.0),
        {"type": "identity"},
        moved(0.5, 0.0, 0.0),
    ]
    group.attrs["ome"] = ome
    image = io.read_zarr(path)
    assert image.GetSpacing() == pytest.approx((3 * 25.4, 2.0, 30.0))
    assert image.GetOrigin() == pytest.approx((6 * 25.4, 2.0, 15.0))


@pytest.mark.parametrize(
    ("orientation", "corner"),  # LPS of voxel (1, 2, 3) where the axes say x = 31.5, y = -16, z = 19
    [
        ({}, (31.5, -16.0, 19.0)),
        ({"x": "left-to-right", "y": "posterior-to-anterior"}, (-31.5, 16.0, 19.0)),
        ({"z": "superior-to-inferior"}, (31.5, -16.0, -19.0)),
        ({"x": "superior-to-inferior", "y": "right-to-left", "z": "anterior-to-posterior"}, (-16.0, 19.0, -31.5)),
    ],
)
def test_positions_run_as_the_orientation_says(
    tmp_path: Path, orientation: dict[str, str], corner: Sequence[float]
) -> None:
    levels = {"0": (VALUES, [SCALE, moved(10.0, -20.0, 30.0)])}
    image = io.read_zarr(store(tmp_path / "scan.zarr", levels, volume_axes(**orientation)))
    assert image.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx(corner)
    assert image[1, 2, 3] == VALUES[3, 2, 1]


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (volume_axes(unit=None), "says no unit of length for its axes; mm are taken"),
        ([axis(n) for n in "zyx"], "says nothing of how its axes x, y, z lie in the patient"),
        (volume_axes(x="dorsal-to-ventral"), "says dorsal-to-ventral, .* which tells too little, of how its axes"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, axes: list[dict[str, Any]], told: str) -> None:
    path = store(tmp_path / "scan.zarr", axes=axes)
    with pytest.warns(RuntimeWarning, match=told) as caught:
        image = io.read_zarr(path)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert (image.GetSpacing(), image.GetOrigin()) == ((1.5, 2.0, 3.0), (0.0, 0.0, 0.0))
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    with pytest.warns(RuntimeWarning, match=told):  # the command, which hushes readers, passes it on
        CliRunner().invoke(app, ["register", str(path), str(tmp_path / "none.nii"), "-o", str(tmp_path / "out")])


@pytest.mark.parametrize("order", ["tczyx", "czyxt", "xyzc", "zyxc", "tyxzc"])
def test_axes_in_any_order(tmp_path: Path, order: str) -> None:
    whole = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5, 6)).astype("i2")  # t, c, z, y, x
    whole = whole if "t" in order else whole[1]
    now = "tczyx" if "t" in order else "czyx"
    values = np.ascontiguousarray(whole.transpose([now.index(a) for a in order]))
    scale = scaled(*({"z": 3.0, "y": 2.0, "x": 1.5}.get(a, 1.0) for a in order))
    path = store(tmp_path / "scan.zarr", {"0": (values, [scale])}, [axis(a, orientation=LPS.get(a)) for a in order])
    name = f"{path}#time=1" if "t" in order else str(path)
    truth = whole[1] if "t" in order else whole
    vector = io.read_zarr(name)
    assert vector.GetSpacing() == (1.5, 2.0, 3.0)
    np.testing.assert_array_equal(np.moveaxis(array_of(vector), -1, 0), truth)
    for end in ("", "/", "/0"):
        picked = f"{path}{end}#channel=2" + (",time=1" if "t" in order else "")
        np.testing.assert_array_equal(array_of(io.read_image(picked)), truth[2])
    opened = io.open_zarr(name)
    assert (opened.channels, opened.grid.size, opened.dtype) == (3, (6, 5, 4), np.dtype("i2"))
    np.testing.assert_array_equal(opened[1:3, :, 2:4], np.moveaxis(truth, 0, -1)[1:3, :, 2:4])


@pytest.mark.parametrize(
    ("stored", "read"), [("?", "uint8"), ("<f2", "float32"), (">i2", "int16"), (">f8", "float64"), ("<u8", "uint64")]
)
def test_numbers_that_itk_does_not_have(tmp_path: Path, stored: str, read: str) -> None:
    values = (VALUES % 7).astype(stored)
    image = io.read_zarr(store(tmp_path / "scan.zarr", {"0": (values, [SCALE])}, version="0.4"))
    assert array_of(image).dtype == read
    np.testing.assert_array_equal(array_of(image), values.astype(read))


def test_axes_of_one_are_dropped_and_a_plane_is_read(tmp_path: Path) -> None:
    scale = {"type": "scale", "scale": [1.0, 1.0, *SCALE["scale"]]}
    axes = [axis("t"), {"name": "phase", "type": "phase"}, *volume_axes()]
    path = store(tmp_path / "scan.zarr", {"0": (VALUES[None, None], [scale])}, axes)
    np.testing.assert_array_equal(array_of(io.read_image(path)), VALUES)
    plane = store(tmp_path / "plane.zarr", {"0": (VALUES[0], [scaled(2.0, 1.5)])}, [axis("y"), axis("x")])
    image = io.read_zarr(plane)
    assert (image.GetDimension(), image.GetSpacing()) == (2, (1.5, 2.0))
    np.testing.assert_array_equal(array_of(image), VALUES[0])


def test_a_chunk_that_others_left_out_is_told(tmp_path: Path) -> None:
    path = store(tmp_path / "scan.zarr")
    (path / "0" / "c" / "1" / "1" / "1").unlink()
    expected = VALUES.copy()
    expected[2:4, 2:4, 3:6] = 0
    with pytest.warns(RuntimeWarning, match="1 of 12 chunks are missing and read as 0"):
        image = io.read_zarr(path)
    np.testing.assert_array_equal(array_of(image), expected)


# ---- what cannot be read


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A sound store whose metadata were changed."""
    file = store(path) / "zarr.json"
    content = json.loads(file.read_text())
    change(content["attributes"]["ome"]["multiscales"][0])
    file.write_text(json.dumps(content))
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def ours(path: Path) -> Path:
    image = sitk.AdditiveGaussianNoise(sitk.Image([70, 9, 8], sitk.sitkFloat32), 1.0, 0.0, 1)
    io.write_image(image, path)
    return path


def shortened(folder: Path, version: str) -> Path:
    image = sitk.AdditiveGaussianNoise(sitk.Image([70, 9, 8], sitk.sitkFloat32), 1.0, 0.0, 1)
    io.write_zarr(image, folder / "short.zarr", version=version)  # type: ignore[arg-type]
    cut(folder / "short.zarr" / "0" / ("c" if version == "0.5" else "") / "0" / "0" / "1")
    return folder / "short.zarr"


def flipped_bit(folder: Path) -> Path:
    chunk = ours(folder / "bit.zarr") / "0" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(content)
    return folder / "bit.zarr"


def without(path: Path, *names: str) -> Path:
    for name in names:
        io.remove(path / name)
    return path


def grouped(folder: Path) -> Path:
    zarr.open_group(folder / "many.zarr", mode="w")
    store(folder / "many.zarr" / "b")
    store(folder / "many.zarr" / "a")
    return folder / "many.zarr"


def bare(folder: Path) -> Path:
    zarr.create_array(folder / "bare.zarr", shape=(4, 4, 4), dtype="f4")
    return folder / "bare.zarr"


def film(folder: Path, choice: str = "", **more: Any) -> str:
    scale = {"type": "scale", "scale": [1.0, 1.0, *SCALE["scale"]]}
    axes = [axis("t"), axis("c"), *volume_axes()]
    values = np.broadcast_to(VALUES, (2, 3, *VALUES.shape))
    return f"{store(folder / 'film.zarr', {'0': (values, [scale])}, axes, **more)}{choice}"


def placed(steps: list[dict[str, Any]]) -> Callable[[dict[str, Any]], object]:
    return lambda image: image["datasets"][0].update(coordinateTransformations=steps)


def axis_set(number: int, **more: Any) -> Callable[[dict[str, Any]], object]:
    return lambda image: image["axes"][number].update(more)


LABELS = {"omero": {"channels": [{"label": "T1"}, {"label": "T2"}, {"label": None}]}}


def spoilt(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    return lambda folder: edited(folder / "a.zarr", change)


def damaged(*parts: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        cut(store(folder / "a.zarr").joinpath(*parts))
        return folder / "a.zarr"

    return make


def filled(values: NDArray[Any], *more: dict[str, Any]) -> Callable[[Path], Path]:
    steps = [scaled(*[1.0] * len(more), 3.0, 2.0, 1.5)]
    return lambda folder: store(folder / "a.zarr", {"0": (values, steps)}, [*more, *volume_axes()])


def one_axis_less(image: dict[str, Any]) -> None:
    image["axes"].insert(0, axis("t"))
    placed([scaled(1, 1, 1, 1)])(image)


BAD: dict[str, tuple[Callable[[Path], str | Path], type[DsirError], str]] = {
    "nothing there": (lambda f: f / "none.ome.zarr", DataError, "there is no such store"),
    "an address": (lambda _: "https:/host/scan.ome.zarr", DataError, "is an address; .* download the store"),
    "no such level": (lambda f: store(f / "a.zarr") / "3", DataError, r"no such level; .*a.zarr has 0$"),
    "an empty folder": (lambda f: (f / "a.zarr").mkdir() or f / "a.zarr", DataError, "is no OME-Zarr image"),
    "a group of images": (grouped, DataError, "has the images a, b: give one, as .*many.zarr/a"),
    "no such image": (lambda f: grouped(f) / "c", DataError, "there is no such image in .*many.zarr$"),
    "an array alone": (bare, DataError, "is no OME-Zarr image, which has `multiscales`"),
    "another version": (lambda f: store(f / "a.zarr", version="0.6"), DataError, "is OME-Zarr 0.6; 0.4 and 0.5"),
    "metadata cut": (damaged("zarr.json"), DataError, "truncated or damaged"),
    "array metadata cut": (damaged("0", "zarr.json"), DataError, "truncated or damaged"),
    "array metadata gone": (lambda f: without(store(f / "a.zarr"), "0/zarr.json"), DataError, "truncated or damaged"),
    "no axes": (spoilt(lambda m: m.pop("axes")), DataError, "damaged .*KeyError: 'axes'"),
    "no datasets": (spoilt(lambda m: m.update(datasets=[])), DataError, "damaged"),
    "axes of 0.3": (spoilt(lambda m: m.update(axes=["z", "y", "x"])), DataError, "damaged"),
    "no x": (spoilt(axis_set(2, name="i")), DataError, "has the axes z, y, i; x, y, perhaps z"),
    "x twice": (spoilt(axis_set(0, name="x")), DataError, "has the axes x, y, x; x, y, perhaps z"),
    "no length": (spoilt(axis_set(0, unit="second")), GeometryError, "the axis z is 'second', no length"),
    "flat": (spoilt(axis_set(0, orientation={"value": "left-to-right"})), GeometryError, "two axes along one"),
    "affine": (spoilt(placed([{"type": "affine"}])), DataError, "has a transformation 'affine'"),
    "scale in a file": (spoilt(placed([{"type": "scale", "path": "s"}])), DataError, "has a transformation 'scale'"),
    "too short a scale": (spoilt(placed([scaled(1, 1)])), DataError, "scale of 2 numbers for 3 axes"),
    "no spacing": (spoilt(placed([scaled(1, 0, 1)])), GeometryError, "three positive spacings"),
    "one axis less": (spoilt(one_axis_less), ShapeError, "has 3 axes, its metadata 4"),
    "chunk cut": (lambda f: shortened(f, "0.5"), DataError, "truncated or damaged"),
    "chunk cut, 0.4": (lambda f: shortened(f, "0.4"), DataError, "truncated or damaged"),
    "a bit flipped": (flipped_bit, DataError, "truncated or damaged .*checksum"),
    "a chunk of ours gone": (lambda f: without(ours(f / "a.zarr"), "0/c/0/0/1"), DataError, "1 of 2 chunks are miss"),
    "all chunks gone": (lambda f: without(store(f / "a.zarr"), "0/c"), DataError, "12 of 12 chunks are missing"),
    "complex": (filled(VALUES.astype("c8")), ShapeError, "real numbers are expected"),
    "channels": (lambda f: film(f, "#time=1", **LABELS), ShapeError, r"3 channels \(T1, T2\), .*#time=1,channel=0"),
    "times": (lambda f: film(f, "#channel=1"), ShapeError, "2 time points, one is expected; .*#channel=1,time=0"),
    "no such channel": (lambda f: film(f, "#channel=3,time=0"), DataError, "channel=3 was asked for; there are 3"),
    "no channels": (lambda f: f"{store(f / 'a.zarr')}#channel=0", DataError, "has no axis of channel; leave out"),
    "no sense": (lambda f: film(f, "#level=2"), DataError, "#level=2 is not understood; write #channel=0"),
    "phases": (filled(VALUES[None].repeat(2, 0), {"name": "phase"}), ShapeError, "2 images along the axis phase"),
    "constant": (filled(VALUES * 0 + 7), DataError, "all voxels are 7"),
    "NaN": (filled(np.where(VALUES == 7, np.nan, VALUES)), DataError, "1 voxels are NaN"),
}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_that_blosc_would_read_beyond_its_end(tmp_path: Path, version: str) -> None:
    """Noise is stored as it is, and Blosc copies as many bytes as it should have, from wherever they come."""
    from numcodecs import Blosc

    path = store(tmp_path / "a.zarr", version=version)
    noise = np.random.default_rng(5).integers(0, 256, (9, 8, 40), np.uint8)
    form: dict[str, Any] = {"zarr_format": 2, "compressors": Blosc("lz4")}
    if version == "0.5":
        form = {"zarr_format": 3, "compressors": zarr.codecs.BloscCodec(cname="lz4")}
    zarr.create_array(path / "0", data=noise, chunks=(9, 8, 20), overwrite=True, **form)
    np.testing.assert_array_equal(io.open_zarr(path)[:, :, :][..., 0], noise)
    chunk = path / "0" / ("0.0.1" if version == "0.4" else "c/0/0/1")
    whole = chunk.read_bytes()
    assert len(whole) > 9 * 8 * 20
    for length in (len(whole) - 1, len(whole) - 100, 17, 9, 0):
        chunk.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"a.zarr: .*1 is truncated \({length} bytes are there\); copy"):
            io.read_zarr(path)
        np.testing.assert_array_equal(io.open_zarr(path)[:, 2:3, :20][..., 0], noise[:, 2:3, :20])
    chunk.unlink()
    with pytest.warns(RuntimeWarning, match="1 of 2 chunks are missing"):
        io.read_zarr(path)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_store_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, error, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        io.read_image(path)
    said = str(caught.value)
    assert said.startswith(str(path).partition("#")[0])
    assert "\n" not in said
    result = CliRunner().invoke(app, ["register", str(path), str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr == f"error: {said}\n"


def test_a_header_tells_what_is_wrong_before_a_voxel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path)
    monkeypatch.setattr(io.ZarrImage, "__getitem__", lambda *_: pytest.fail("voxels were read"))
    with pytest.raises(ShapeError, match="2 time points"):
        io.read_image(path)
    assert io.read_grid(f"{path}#time=0,channel=0").size == (6, 5, 4)


def test_without_zarr_the_extra_is_named(tmp_path: Path, volume: sitk.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path / "scan.zarr")
    monkeypatch.setattr(Package, "version", None)
    for call in (lambda: io.read_image(path), lambda: io.write_image(volume, tmp_path / "new.zarr")):
        with pytest.raises(MissingDependencyError, match=r"zarr is not installed: pip install 'dsir-metric\[zarr\]'"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


def test_a_store_is_known_by_its_ending_or_its_files(tmp_path: Path, volume: sitk.Image) -> None:
    plain = store(tmp_path / "plain")
    assert all(map(io.is_zarr, ("a.zarr", "a.OME.ZARR/2#channel=1", plain, f"{plain}/0", f"{plain}#time=1")))
    (tmp_path / "odd#1.zarr").touch()
    assert not any(map(io.is_zarr, ("a.nii.gz", tmp_path, tmp_path / "odd#1.zarr", "zarr/a.mha")))
    assert io.store_of("x/a.ome.zarr/labels/b#channel=1") == Path("x/a.ome.zarr")
    assert io.store_of(f"{plain}#time=1") == plain
    odd = store(tmp_path / "a#1.zarr")
    np.testing.assert_array_equal(array_of(io.read_zarr(odd)), VALUES)


# ---- by slices, and whole or not at all


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_blocks_that_fit_no_chunk_make_the_whole(tmp_path: Path, volume: sitk.Image, version: Any) -> None:
    grid = replace(Grid.of(volume), size=(70, 9, 66))
    values = np.random.default_rng(0).standard_normal((*grid.shape, 3)).astype(np.float32)
    path = tmp_path / "dsir.ome.zarr"
    with io.open_components_zarr(path, grid, 3, version=version, provenance={"model": "m"}) as out:
        for z, y, x in itertools.product(range(0, 66, 37), range(0, 9, 4), range(0, 70, 41)):
            where = np.s_[z : z + 37, y : y + 4, x : x + 41]
            out[where] = values[where]
        assert not path.exists()
    back = Representation.from_sitk(io.read_zarr(path))
    np.testing.assert_array_equal(back.values, values)
    assert back.grid.matches(grid, 1e-12)
    assert metadata(path)["dsir_metric"]["provenance"] == {"model": "m"}
    half = tmp_path / "half.ome.zarr"
    with io.open_components_zarr(half, grid, 3, np.float16) as out:
        out[:, :, :] = values
    np.testing.assert_array_equal(array_of(io.read_zarr(half)), values.astype(np.float16).astype(np.float32))


def test_a_plane_is_written_by_blocks_as_well(tmp_path: Path) -> None:
    grid = Grid((12, 10, 1), (1.5, 2.0, 1.5), (-20.0, 7.0, 0.0), (0, -1, 0, 1, 0, 0, 0, 0, 1), 2)
    values = np.random.default_rng(0).standard_normal((1, 10, 12, 2)).astype(np.float32)
    with io.open_components_zarr(tmp_path / "p.zarr", grid, 2) as out:
        out[:, :5, :] = values[:, :5]
        out[0:1, 5:, :] = values[:, 5:]
    same(io.read_zarr(tmp_path / "p.zarr"), Representation(values, grid).to_sitk())


def test_what_is_incomplete_never_appears(tmp_path: Path, volume: sitk.Image) -> None:
    path, grid = tmp_path / "dsir.zarr", replace(Grid.of(volume), size=(5, 6, 80))
    io.write_image(volume, path)

    def write(z: slice, block: NDArray[Any], error: Exception | None = None) -> None:
        with io.open_components_zarr(path, grid, 2) as out:
            out[z, :, :] = block
            if error:
                raise error

    with pytest.raises(DataError, match="2 of 4 chunks were not given"):
        write(slice(0, 64), np.zeros((64, 6, 5, 2)))
    with pytest.raises(
        ShapeError, match=r"a block of shape \(80, 6, 5, 2\) \(z, y, x, channels\) is expected; \(80, 6, 5\)"
    ):
        write(slice(None), np.zeros((80, 6, 5)))
    with pytest.raises(DataError, match="No space left"):
        write(slice(None), np.zeros((80, 6, 5, 2)), OSError(28, "No space left on device"))
    same(io.read_image(path), volume)
    write(slice(None), np.zeros((80, 6, 5, 2)))
    assert io.open_zarr(path).channels == 2
    assert [p.name for p in tmp_path.iterdir()] == ["dsir.zarr"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_new_store_replaces_all_of_the_old(
    tmp_path: Path, volume: sitk.Image, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not exchanged:  # as where the system cannot do it at once
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    path = tmp_path / "scan.zarr"
    io.write_zarr(sitk.Compose(volume, volume), path, version="0.4")
    io.write_image(volume, path)
    same(io.read_image(path), volume)
    assert not (path / ".zattrs").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


def test_what_is_no_store_is_not_replaced(tmp_path: Path, volume: sitk.Image) -> None:
    folder, file = tmp_path / "results.zarr", tmp_path / "file.zarr"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    file.write_text("old")
    for path, message in ((folder, "is a folder with other things in it"), (file, "is a file; delete it first")):
        with pytest.raises(DataError, match=message):
            io.write_zarr(volume, path)
    assert (folder / "thesis.txt").exists()
    assert file.read_text() == "old"
    (folder / "thesis.txt").unlink()
    io.write_image(volume, folder)
    same(io.read_image(folder), volume)
    with pytest.raises(DataError, match="cannot be written"):
        io.write_image(volume, tmp_path / "none" / "a.zarr")
    with pytest.raises(ShapeError, match="complex"):
        io.write_image(sitk.RealAndImaginaryToComplex(volume, volume), folder)


KILLED = """
import os, signal, sys
import numpy as np
from dsir_metric import io
from dsir_metric.geometry import Grid
with io.open_components_zarr(sys.argv[1], Grid((9, 9, 9)), 2) as out:
    out[:5, :, :] = np.ones((5, 9, 9, 2))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_the_old_store(tmp_path: Path, volume: sitk.Image) -> None:
    path = tmp_path / "scan.zarr"
    io.write_image(volume, path)
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    same(io.read_image(path), volume)
    assert len(list(tmp_path.iterdir())) == 2
    io.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


# ---- commands


@pytest.fixture
def files(tmp_path: Path, pair: PhantomPair) -> dict[str, Path]:
    """The phantom, in stores, but for the moving scan."""
    endings = {"fixed": "ome.zarr", "moving": "nii.gz", "fixed_labels": "ome.zarr", "moving_labels": "ome.zarr"}
    paths = {name: tmp_path / f"{name}.{ending}" for name, ending in endings.items()}
    for name, path in paths.items():
        io.write_image(getattr(pair, name), path)
    return paths


def call(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


def test_register_reads_stores_and_writes_them_when_asked(
    files: dict[str, Path], tmp_path: Path, pair: PhantomPair
) -> None:
    labels = ["--fixed-labels", files["fixed_labels"], "--moving-labels", files["moving_labels"]]
    call("register", files["fixed"], files["moving"], "-o", tmp_path / "a", *labels, *QUICK, "--format", ".ome.zarr")
    call("register", files["fixed"], files["moving"], "-o", tmp_path / "b", *labels, *QUICK)
    names = ["moved.ome.zarr", "moved_labels.ome.zarr", "result.json", "transform.h5"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [n.replace("ome.zarr", "nii.gz") for n in names]
    for name in ("moved", "moved_labels"):
        same(io.read_zarr(tmp_path / "a" / f"{name}.ome.zarr"), sitk.ReadImage(str(tmp_path / "b" / f"{name}.nii.gz")))
    assert Grid.of(io.read_image(tmp_path / "a" / "moved.ome.zarr")).matches(Grid.of(pair.fixed))


def test_represent_writes_a_store(tmp_path: Path, volume: sitk.Image) -> None:
    path, out = tmp_path / "scan.ome.zarr", tmp_path / "dsir.ome.zarr"
    io.write_image(volume, path)
    call("represent", path, "-o", out, "--threads", 1)
    truth = Representer(threads=1)(volume)
    same(io.read_zarr(out), truth.to_sitk())
    assert metadata(out)["dsir_metric"]["provenance"] == json.loads(json.dumps(dict(truth.provenance)))
    result = CliRunner().invoke(app, ["represent", str(path), "-o", str(tmp_path / "dsir.xyz")])
    assert result.exit_code == 2
    assert ".ome.zarr" in result.stderr


def test_a_study_of_stores(files: dict[str, Path], tmp_path: Path, pair: PhantomPair) -> None:
    rows = ("fixed,moving", "fixed.ome.zarr,two.ome.zarr#channel=1", "fixed.ome.zarr/0,moving.nii.gz")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    io.write_zarr(sitk.Compose(pair.moving, pair.moving + 1.0), tmp_path / "two.ome.zarr")
    first, second = read_pairs(tmp_path / "pairs.csv", tmp_path / "out", 9.0, ".ome.zarr")
    assert (first.id, second.id) == ("two_to_fixed", "moving_to_fixed")
    assert first.voxels == second.voxels
    config = RegisterConfig(stages=("centre",), threads=1, spacing_mm=9.0)
    work = Work.of(config, Cache(tmp_path / "cache"))
    names = {"transform.h5", "moved.ome.zarr", "result.json"}
    assert work(first.job).state == "done"
    assert {p.name for p in first.job.output.iterdir()} == names
    assert work(first.job).state == "kept"
    shutil.rmtree(first.job.output / "moved.ome.zarr")
    assert work(first.job).state == "done"
    other = replace(first.job, moving=tmp_path / "two.ome.zarr#channel=0")
    assert work(other).state == "done"  # another channel is another scan
    io.write_zarr(sitk.Compose(pair.moving, pair.moving + 2.0), tmp_path / "two.ome.zarr")
    assert work(other).state == "done"
    assert work(replace(other, ending=".nrrd")).state == "done"
    assert {p.name for p in other.output.iterdir()} == {"transform.h5", "moved.nrrd", "result.json"}
    missing = replace(other, moving=tmp_path / "none.ome.zarr")
    assert "there is no such store" in work(missing).error


def test_a_folder_of_training_scans_may_hold_stores(tmp_path: Path, volume: sitk.Image) -> None:
    scans = pytest.importorskip("dsir_metric_train.views")
    (tmp_path / "subject").mkdir()
    io.write_image(volume, tmp_path / "subject" / "scan.ome.zarr")
    assert scans.find_images(tmp_path, ["**/*"]) == [tmp_path / "subject" / "scan.ome.zarr"]


# ---- metadata and chunks that lie


def changed(path: Path, **more: Any) -> Path:
    """A store of format 3 whose array says something else."""
    meta = path / "0" / "zarr.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | more))
    group = json.loads((path / "zarr.json").read_text())
    group["attributes"].pop("dsir_metric", None)
    (path / "zarr.json").write_text(json.dumps(group))
    return path


def grid_of_chunks(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


@pytest.mark.parametrize("read", [io.read_image, io.read_grid])
def test_chunks_that_are_claimed_are_not_counted_one_by_one(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = store(tmp_path / "x.ome.zarr")
    for shape, chunks in (((10**5,) * 3, (1, 1, 1)), ((10**12,) * 3, (1, 1, 1)), ((4000, 5, 6), (1, 1, 1))):
        changed(path, shape=list(shape), chunk_grid=grid_of_chunks(*chunks))
        with pytest.raises(DataError, match="chunks are missing"):
            read(path)


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_a_chunk_that_unpacks_to_far_more_is_refused(tmp_path: Path, codec: str) -> None:
    import numcodecs

    path = store(tmp_path / "x.ome.zarr")
    meta = json.loads((path / "0" / "zarr.json").read_text())
    more = {"zstd": {"level": 0, "checksum": False}, "blosc": {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle"}}
    extra = {"typesize": 2, "blocksize": 0} if codec == "blosc" else {}
    changed(path, codecs=[meta["codecs"][0], {"name": codec, "configuration": more[codec] | extra}])
    pack = numcodecs.Zstd() if codec == "zstd" else numcodecs.Blosc("zstd")
    for chunk in (p for p in (path / "0" / "c").rglob("*") if p.is_file()):
        chunk.write_bytes(pack.encode(bytes(10**7)))
    with pytest.raises(DataError, match="holds 10000000 bytes, far more than a chunk"):
        io.read_image(path)


def test_chunks_that_could_run_a_program_are_not_read(tmp_path: Path) -> None:
    path = store(tmp_path / "x.ome.zarr", version="0.4")
    meta = path / "0" / ".zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"filters": [{"id": "pickle", "protocol": 5}]}))
    with pytest.raises(DataError, match="pickled"):
        io.read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("part", ["zarr.json", "0/zarr.json", "0/c/0/0/0"])
def test_a_pipe_in_a_store_is_not_opened(tmp_path: Path, part: str) -> None:
    path = store(tmp_path / "x.ome.zarr")
    (path / part).unlink()
    os.mkfifo(path / part)
    with pytest.raises(DataError) as caught:
        io.read_image(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b'{"attributes": 5}', b'{"attributes": {"ome": []}}']
)
def test_metadata_of_another_kind_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = store(tmp_path / "x.ome.zarr")
    (path / "zarr.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        io.read_image(path)
    assert len(str(caught.value).splitlines()) == 1
