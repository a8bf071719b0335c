"""Files come back as they went, bad ones are refused with a reason, and none is left half written."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.errors import DataError, DsirError, GeometryError, ShapeError
from dsir_metric.geometry import Grid

FORMATS = ["nii", "nii.gz", "nrrd", "mha"]
Refusal = tuple[type[DsirError], str]


@pytest.mark.parametrize("ending", FORMATS)
def test_an_image_comes_back_with_its_geometry(tmp_path: Path, volume: sitk.Image, ending: str) -> None:
    path = tmp_path / f"scan.{ending}"
    io.write_image(volume, path)
    back = io.read_image(path)
    assert Grid.of(back).matches(Grid.of(volume))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(volume))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_file_is_refused(tmp_path: Path, volume: sitk.Image, ending: str, compressed: bool) -> None:
    path = tmp_path / f"scan.{ending}"
    noisy = sitk.AdditiveGaussianNoise(volume, 1.0, 0.0, 1)
    sitk.WriteImage(noisy, str(path), useCompression=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match="truncated") as caught:
        io.read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def write(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def bad_files(folder: Path, volume: sitk.Image) -> dict[str, tuple[Path, Refusal]]:
    """Every file that cannot be read as a scan, and what must be said about it."""
    spoilt = sitk.Image(volume)
    spoilt[1, 2, 3] = float("nan")
    boundless = sitk.Image(volume)
    boundless[1, 2, 3] = float("inf")
    text, empty, folder_path = folder / "text.nii.gz", folder / "empty.nrrd", folder / "folder.nii"
    text.write_text("hello")
    empty.touch()
    folder_path.mkdir()
    return {
        "missing": (folder / "none.nii.gz", (DataError, "no such file")),
        "text": (text, (DataError, "no NIfTI")),
        "empty": (empty, (DataError, "no image that ITK reads")),
        "folder": (folder_path, (DataError, "is a folder")),
        "2D": (write(volume[:, :, 3], folder / "flat.nrrd"), (ShapeError, r"2 axes \(12, 10\)")),
        "slice": (write(volume[:, :, 3:4], folder / "slice.nrrd"), (ShapeError, "single slice")),
        "4D": (write(sitk.JoinSeries([volume] * 2), folder / "film.nii"), (ShapeError, r"4 axes \(12, 10, 8, 2\)")),
        "vector": (write(sitk.Compose(volume, volume), folder / "v.mha"), (ShapeError, "vector of 32-bit float")),
        "complex": (write(sitk.RealAndImaginaryToComplex(volume, volume), folder / "c.nrrd"), (ShapeError, "complex")),
        "NaN": (write(spoilt, folder / "nan.nii.gz"), (DataError, "1 voxels are NaN or infinite")),
        "infinite": (write(boundless, folder / "inf.nii.gz"), (DataError, "1 voxels are NaN or infinite")),
        "constant": (write(volume * 0 + 7, folder / "flat.mha"), (DataError, "all voxels are 7")),
        "zero spacing in MetaImage": (spaced(volume, folder / "z.mha"), (GeometryError, "spacing has a zero")),
        "zero spacing in NIfTI": (unspaced_nifti(volume, folder / "z.nii"), (GeometryError, "spacing .* has a zero")),
        "shear in MetaImage": (sheared(volume, folder / "s.mha"), (GeometryError, "not orthonormal")),
        "shear in NIfTI": (sheared_nifti(volume, folder / "s.nii"), (GeometryError, "not orthonormal")),
    }


def plain(volume: sitk.Image) -> sitk.Image:
    image = sitk.Image(volume)
    image.SetSpacing((1, 1, 1))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    return image


def spaced(volume: sitk.Image, path: Path) -> Path:
    header = write(plain(volume), path).read_bytes()
    path.write_bytes(header.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1"))
    return path


def sheared(volume: sitk.Image, path: Path) -> Path:
    header = write(plain(volume), path).read_bytes()
    path.write_bytes(header.replace(b"TransformMatrix = 1 0 0 0 1", b"TransformMatrix = 1 0 0 1 1"))
    return path


def unspaced_nifti(volume: sitk.Image, path: Path) -> Path:
    header = bytearray(write(plain(volume), path).read_bytes())
    struct.pack_into("<f", header, 76 + 2 * 4, 0.0)  # pixdim[2]
    path.write_bytes(header)
    return path


def sheared_nifti(volume: sitk.Image, path: Path) -> Path:
    header = bytearray(write(plain(volume), path).read_bytes())
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform, but an sform
    struct.pack_into("<12f", header, 280, 1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(header)
    return path


BAD = [
    "missing",
    "text",
    "empty",
    "folder",
    "2D",
    "slice",
    "4D",
    "vector",
    "complex",
    "NaN",
    "infinite",
    "constant",
    "zero spacing in MetaImage",
    "zero spacing in NIfTI",
    "shear in MetaImage",
    "shear in NIfTI",
]


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, volume: sitk.Image, case: str) -> None:
    path, (error, message) = bad_files(tmp_path, volume)[case]
    with pytest.raises(error, match=message) as caught:
        io.read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_case_is_tested(tmp_path: Path, volume: sitk.Image) -> None:
    assert list(bad_files(tmp_path, volume)) == BAD


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path, volume: sitk.Image) -> None:
    film = write(sitk.JoinSeries([volume]), tmp_path / "film.mha")
    assert Grid.of(io.read_image(film)).matches(Grid.of(volume))


def test_nifti_2_is_named_and_big_endian_is_looked_into(tmp_path: Path, volume: sitk.Image) -> None:
    path = tmp_path / "two.nii"
    path.write_bytes(struct.pack(">i", 540) + bytes(536))
    with pytest.raises(DataError, match="NIfTI-2"):
        io.read_image(path)
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, 9, 8, 7, 1, 1, 1, 1)
    struct.pack_into(">h", header, 70, 16)  # float32
    struct.pack_into(">8f", header, 76, 1, 2, 2, 2, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + bytes(100))
    with pytest.raises(DataError, match="2016 bytes of voxels are promised, 100 came"):
        io.read_image(path)
    path.write_bytes(bytes(header[:300]))
    with pytest.raises(DataError, match="truncated in its header"):
        io.read_image(path)
    path.write_bytes(bytes(header) + np.arange(504, dtype=">f4").tobytes())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(path)).ravel(), np.arange(504))


def test_an_image_in_memory_is_checked_the_same_way(volume: sitk.Image) -> None:
    assert io.check_image(sitk.Cast(volume, sitk.sitkInt16), "fixed").GetPixelID() == sitk.sitkFloat32
    with pytest.raises(DataError, match=r"^moving: all voxels are 0"):
        io.check_image(volume * 0, "moving")
    with pytest.raises(DataError, match=r"^moving: is a ndarray; a sitk.Image is expected"):
        io.check_image(sitk.GetArrayFromImage(volume), "moving")


def test_labels_are_whole_numbers(tmp_path: Path, volume: sitk.Image) -> None:
    stored_as_float = write(sitk.Round(volume), tmp_path / "labels.nii.gz")
    labels = io.read_labels(stored_as_float)
    assert labels.GetPixelID() == sitk.sitkInt32
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(labels), np.rint(sitk.GetArrayViewFromImage(volume)))
    with pytest.raises(DataError, match="whole numbers"):
        io.read_labels(write(volume, tmp_path / "scan.nii.gz"))


def test_a_mask_fits_its_image_and_is_not_empty(tmp_path: Path, volume: sitk.Image) -> None:
    grid = Grid.of(volume)
    mask = io.read_mask(write(sitk.Cast(volume > 50, sitk.sitkFloat32) * 3, tmp_path / "mask.nrrd"), grid)
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1}
    with pytest.raises(DataError, match="the mask is empty"):
        io.read_mask(write(volume > 1e6, tmp_path / "empty.nrrd"), grid)
    with pytest.raises(GeometryError, match="another grid"):
        io.read_mask(write(volume[1:, :, :] > 50, tmp_path / "cut.nrrd"), grid)
    with pytest.raises(ShapeError, match=r"^fixed mask: has voxels of type vector"):
        io.check_mask(sitk.Compose(volume, volume), grid, "fixed mask")


@pytest.mark.parametrize("ending", ["h5", "tfm"])
def test_a_transform_comes_back(tmp_path: Path, ending: str) -> None:
    affine = sitk.AffineTransform([1, 0.1, 0, 0, 1, 0.2, 0, 0, 1], [3, 4, 5])
    io.write_transform(sitk.CompositeTransform([affine]), tmp_path / f"t.{ending}")
    back = io.read_transform(tmp_path / f"t.{ending}")
    assert back.TransformPoint((1.0, 2.0, 3.0)) == pytest.approx(affine.TransformPoint((1.0, 2.0, 3.0)))


def test_what_is_no_3d_transform_is_refused(tmp_path: Path, volume: sitk.Image) -> None:
    with pytest.raises(DataError, match="no such file"):
        io.read_transform(tmp_path / "none.h5")
    with pytest.raises(DataError, match="holds no transform"):
        io.read_transform(write(volume, tmp_path / "scan.nrrd"))
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    with pytest.raises(ShapeError, match="2-D"):
        io.read_transform(tmp_path / "flat.tfm")
    with pytest.raises(DataError, match=r"^start: is a str; a sitk.Transform is expected"):
        io.check_transform("start.h5", "start")


@pytest.mark.parametrize("scale", [0.0, 1e-4, float("nan")])
def test_a_transform_without_an_inverse_is_refused(scale: float) -> None:
    flat = sitk.AffineTransform(3)
    flat.SetMatrix([scale, 0, 0, 0, scale, 0, 0, 0, scale])
    with pytest.raises(DataError, match="squeezes space flat"):
        io.check_transform(flat, "start")
    flat.SetMatrix([-1, 0, 0, 0, 1, 0, 0, 0, 0.1])
    assert io.check_transform(flat, "start") is flat


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def half_way() -> None:
        with io.atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left"):
        half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("most_bytes", [0, 3, 20_000])
def test_a_full_disk_leaves_the_old_image(tmp_path: Path, ending: str, most_bytes: int) -> None:
    """ITK's writer of NIfTI says nothing when it cannot go on."""
    resource = pytest.importorskip("resource")
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((30, 31, 32), np.float32))
    path = tmp_path / f"image{ending}"
    io.write_image(image, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            io.write_image(image + 1.0, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_writer_without_a_format_is_one_line(tmp_path: Path, volume: sitk.Image) -> None:
    with pytest.raises(DataError, match=r"scan\.xyz: cannot be written") as caught:
        io.write_image(volume, tmp_path / "scan.xyz")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be written"):
        io.write_transform(sitk.Transform(3, sitk.sitkIdentity), tmp_path / "none" / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_json_takes_numpy_and_paths(tmp_path: Path) -> None:
    content = {
        "a": np.float32(0.5),
        "b": np.arange(3),
        "c": Path("x"),
        "d": (1, float("nan")),
        "e": {2: np.bool_(True)},
    }
    io.write_json(content, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": "x",
        "d": [1, None],
        "e": {"2": True},
    }


def test_an_output_folder_is_made_and_tried(tmp_path: Path) -> None:
    assert io.prepare_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written to"):
        io.prepare_folder(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written to"):
        io.prepare_folder("/proc/none")
