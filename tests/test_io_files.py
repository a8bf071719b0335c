"""Every format of images and transforms: sound files are read, whatever is beside them; the others are refused."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app
from servers import MAIN

from dsir_metric import io
from dsir_metric.errors import ConfigError, DataError, DsirError, GeometryError, is_out_of_memory
from dsir_metric.geometry import Grid
from dsir_metric.phantom import make_pair
from dsir_metric.register import RegistrationResult

Edit = Callable[[bytes], bytes]
QUICK = ["--stages", "centre", "--spacing", "6", "--threads", "1", "-q"]
DETACHED = {"hdr": "img", "nhdr": "raw", "mhd": "raw"}
ENDINGS = ("nii", "nii.gz", "hdr", "img", "img.gz", "nrrd", "nhdr", "mha", "mhd", "gipl", "gipl.gz", "mnc")


@pytest.fixture
def scan() -> sitk.Image:
    """A scan of int16 that every format holds, with values that a format without a scale keeps."""
    values = np.random.default_rng(0).integers(0, 1000, (7, 8, 9)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.5, 1.0, 2.0))
    return image


def written(image: sitk.Image, path: Path, compressed: bool = False) -> Path:
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def one_line(call: Callable[[], object], match: str, error: type[DsirError] = DataError) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# ---- what is sound is read


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_read(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    path = written(scan, tmp_path / f"a.{ending}")
    back = io.read_image(path)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(scan))
    assert back.GetSpacing() == pytest.approx(scan.GetSpacing())
    assert io.read_grid(path).matches(Grid.of(back))


def test_a_dicom_file_of_a_volume_is_read(tmp_path: Path, scan: sitk.Image) -> None:
    path = written(sitk.Cast(scan, sitk.sitkUInt16), tmp_path / "a.dcm").rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(path)), sitk.GetArrayFromImage(scan))


def test_the_file_that_is_asked_for_is_read(tmp_path: Path, scan: sitk.Image) -> None:
    """ITK's library reads `a.nii` for `a.nii.gz` where both are there."""
    written(scan + 5, tmp_path / "a.nii")
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(io.read_image(written(scan, tmp_path / "a.nii.gz"))), sitk.GetArrayFromImage(scan)
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha", "ome.zarr"])
def test_a_name_to_write_to_need_not_be_utf8(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    path = tmp_path / os.fsdecode(b"a.\xff." + ending.encode())
    io.write_image(scan, path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(path)), sitk.GetArrayFromImage(scan))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
@pytest.mark.parametrize("ending", ["h5", "tfm"])
def test_a_transform_to_write_to_a_name_that_is_not_utf8(tmp_path: Path, ending: str) -> None:
    path = tmp_path / os.fsdecode(b"a.\xff." + ending.encode())
    io.write_transform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), path)
    assert io.read_transform(path).TransformPoint((0.0, 0.0, 0.0)) == (1.0, 2.0, 3.0)
    io.write_json({"path": str(path)}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"path": str(path)}


@pytest.mark.parametrize("after", [bytes(600), b"what follows", b"\x1f", gzip.compress(b"")])
def test_what_follows_the_voxels_in_a_zipped_file_is_no_fault(tmp_path: Path, scan: sitk.Image, after: bytes) -> None:
    path = written(scan, tmp_path / "a.nii")
    content = path.read_bytes()
    for members in ([content], [content[:400], content[400:]]):
        zipped = tmp_path / f"a{len(members)}.nii.gz"
        zipped.write_bytes(b"".join(map(gzip.compress, members)) + after)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(zipped)), sitk.GetArrayFromImage(scan))


def test_a_zipped_file_is_known_by_its_content(tmp_path: Path, scan: sitk.Image) -> None:
    path = written(scan, tmp_path / "a.nii")
    path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(path)), sitk.GetArrayFromImage(scan))


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
@pytest.mark.parametrize("ending", [b"nii.gz", b"nrrd", b"mha"])
def test_a_name_need_not_be_utf8(tmp_path: Path, scan: sitk.Image, ending: bytes) -> None:
    path = written(scan, tmp_path / f"a.{ending.decode()}")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff." + ending))
    path.rename(odd)
    assert io.read_image(odd).GetSize() == scan.GetSize()


@pytest.mark.parametrize(
    ("ending", "edit"),
    [
        ("nrrd", lambda b: b.replace(b"endian", b"line skip: 0\nendian")),
        ("nrrd", lambda b: b.replace(b"\n\n", b"\nlong:=" + b"x" * 3000 + b"\n\n", 1)),
        ("mha", lambda b: b.replace(b"DimSize", b"HeaderSize = -1\nDimSize")),
    ],
)
def test_a_header_that_is_not_simple_is_read_in_another_process(
    tmp_path: Path, scan: sitk.Image, ending: str, edit: Edit
) -> None:
    path = written(scan, tmp_path / f"a.{ending}")
    path.write_bytes(edit(path.read_bytes()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(io.read_image(path)), sitk.GetArrayFromImage(scan))
    assert io.read_grid(path).size == scan.GetSize()


def test_what_a_program_adds_to_a_header_is_no_matter(tmp_path: Path, scan: sitk.Image) -> None:
    """ITK writes the fields of a NIfTI header into a MetaImage or NRRD."""
    nifti = sitk.ReadImage(str(written(scan, tmp_path / "a.nii")))
    for ending in ("mha", "nrrd"):
        assert io.read_image(written(nifti, tmp_path / f"b.{ending}")).GetSize() == scan.GetSize()


# ---- what is cut short, or promises more than there is, is refused


@pytest.mark.parametrize("share", [0.2, 0.67, 0.98])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cut_file_is_refused(tmp_path: Path, scan: sitk.Image, ending: str, compressed: bool, share: float) -> None:
    path = written(scan, tmp_path / f"a.{ending}", compressed)
    cut = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    one_line(lambda: io.read_image(path), "truncated|damaged")


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "gipl"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_promise_is_held_against_the_file_before_memory_is_taken(
    tmp_path: Path, scan: sitk.Image, ending: str, compressed: bool
) -> None:
    edits: dict[str, Edit] = {
        "nii": lambda b: b[:42] + struct.pack("<3h", 30000, 30000, 30000) + b[48:],
        "nrrd": lambda b: b.replace(b"sizes: 9 8 7", b"sizes: 30000 30000 30000"),
        "mha": lambda b: b.replace(b"DimSize = 9 8 7", b"DimSize = 30000 30000 30000"),
        "gipl": lambda b: struct.pack(">3H", 30000, 30000, 30000) + b[6:],
    }
    path = written(scan, tmp_path / f"a.{ending}", compressed)
    content, zipped = path.read_bytes(), ending.endswith(".gz")
    content = edits[ending.removesuffix(".gz")](gzip.decompress(content) if zipped else content)
    path.write_bytes(gzip.compress(content) if zipped else content)
    for read in (io.read_image, io.read_grid):
        one_line(lambda read=read: read(path), "5400.* bytes of voxels are promised|is truncated")  # type: ignore[misc]


def test_voxels_are_counted_by_the_data_type(tmp_path: Path, scan: sitk.Image) -> None:
    """ITK goes by the data type, so a `bitpix` that says less or more is no matter."""
    path = written(scan, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    for bitpix in (1, 8, 64):
        struct.pack_into("<h", content, 72, bitpix)
        path.write_bytes(content)
        assert io.read_image(path).GetSize() == scan.GetSize()
        path.write_bytes(content[:-2])
        one_line(lambda: io.read_image(path), "1008 bytes of voxels are promised, 1006 came")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 1e30, 2.0**31])
def test_an_offset_that_is_no_byte_of_the_file_is_refused(tmp_path: Path, scan: sitk.Image, value: float) -> None:
    path = written(scan, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, value)
    path.write_bytes(content)
    one_line(lambda: io.read_image(path), "vox_offset")


@pytest.mark.parametrize("offset", [0.0, 348.0, 351.0])
def test_voxels_do_not_begin_in_the_header(tmp_path: Path, scan: sitk.Image, offset: float) -> None:
    path = written(scan, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, offset)
    path.write_bytes(content)
    one_line(lambda: io.read_image(path), "vox_offset must be 352 or more")


@pytest.mark.parametrize("at", [256, 268, 280, 292])
def test_a_place_that_is_not_finite_is_refused(tmp_path: Path, scan: sitk.Image, at: int) -> None:
    """ITK takes 0 for it."""
    path = written(scan, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, at, float("nan"))
    path.write_bytes(content)
    one_line(lambda: io.read_image(path), "form is not finite", GeometryError)


@pytest.mark.parametrize("axes", [b"0", b"-1", b"11", b"300", b"2000000000", b"9" * 40, b"", b"nan"])
@pytest.mark.parametrize(("ending", "field"), [("mha", b"NDims = "), ("nrrd", b"dimension: ")])
def test_a_number_of_axes_that_is_none_is_refused(
    tmp_path: Path, scan: sitk.Image, ending: str, field: bytes, axes: bytes
) -> None:
    path = written(scan, tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes().replace(field + b"3", field + axes, 1))
    one_line(lambda: io.read_image(path), "damaged")


@pytest.mark.parametrize("sizes", [b"9 8 0", b"9 8 -7", b"9 8", b"9999999999999999999999 8 7", b"x y z"])
@pytest.mark.parametrize(("ending", "field"), [("mha", b"DimSize = "), ("nrrd", b"sizes: ")])
def test_sizes_that_are_none_are_refused(
    tmp_path: Path, scan: sitk.Image, ending: str, field: bytes, sizes: bytes
) -> None:
    path = written(scan, tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes().replace(field + b"9 8 7", field + sizes, 1))
    one_line(lambda: io.read_image(path), "damaged|truncated")


@pytest.mark.parametrize("ending", DETACHED)
def test_a_header_whose_data_are_missing_is_refused(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    path = written(scan, tmp_path / f"a.{ending}")
    (tmp_path / f"a.{DETACHED[ending]}").unlink()
    one_line(lambda: io.read_image(path), rf"a\.{DETACHED[ending]}: there is no such file")


def test_other_formats_are_named(tmp_path: Path, scan: sitk.Image) -> None:
    """ITK fills what is missing in a VTK or MRC file with whatever was in memory."""
    one_line(lambda: io.read_image(written(scan, tmp_path / "a.vtk")), "no image of a format that is read")


# ---- names and things that are no files

READERS = (io.read_image, io.read_labels, io.read_grid, io.read_transform)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("ending", ["nii.gz", "mha", "h5", "zarr"])
def test_what_is_no_file_is_refused(tmp_path: Path, read: Callable[[Path], object], ending: str) -> None:
    one_line(lambda: read(tmp_path / ("a" * 300 + f".{ending}")), "File name too long|no such store")
    one_line(lambda: read(tmp_path / f"a\0.{ending}"), "no name of a file|no such store")
    loop = tmp_path / f"loop.{ending}"
    loop.symlink_to(loop)
    one_line(lambda: read(loop), "loop")
    (tmp_path / f"folder.{ending}").mkdir()
    one_line(lambda: read(tmp_path / f"folder.{ending}"), "is a folder|no OME-Zarr image")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_not_opened(tmp_path: Path, read: Callable[[Path], object]) -> None:
    pipe = tmp_path / "pipe.nii.gz"
    os.mkfifo(pipe)
    one_line(lambda: read(pipe), "is a pipe or a device")
    one_line(lambda: read(Path("/dev/zero")), "is a pipe or a device")


# ---- numbers


@pytest.mark.parametrize(
    ("ids", "stored", "kind"),
    [
        ([0, 997, 16777217, 614454277], np.uint32, sitk.sitkInt32),
        ([0, 7, 2**31 + 1, 2**32 - 1], np.uint32, sitk.sitkUInt32),
        ([0, 7, 2**32 + 1, 2**53], np.uint64, sitk.sitkInt64),
        ([-(2**40), 0, 2**40], np.int64, sitk.sitkInt64),
        ([0, 2**31 + 1], np.float64, sitk.sitkUInt32),
        ([0, 2**24], np.float32, sitk.sitkInt32),
    ],
)
@pytest.mark.parametrize("ending", ["nrrd", "nii.gz", "mha", "ome.zarr"])
@pytest.mark.filterwarnings("ignore:OME-Zarr")
def test_labels_keep_their_numbers(
    tmp_path: Path, ids: list[int], stored: type[np.generic], kind: int, ending: str
) -> None:
    """Read, resampled and written again."""
    pytest.importorskip("zarr")
    order = np.arange(216).reshape(6, 6, 6) % len(ids)
    image = sitk.GetImageFromArray(np.array(ids, stored)[order])
    io.write_image(image, tmp_path / f"a.{ending}")
    labels = io.read_labels(tmp_path / f"a.{ending}")
    assert labels.GetPixelID() == kind
    still = RegistrationResult(sitk.CompositeTransform(3), Grid.of(image), ())
    io.write_image(still.moved(labels, labels=True), tmp_path / f"b.{ending}")
    back = io.read_labels(tmp_path / f"b.{ending}")
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(back), np.array(ids)[np.arange(216).reshape(6, 6, 6) % len(ids)]
    )


@pytest.mark.parametrize(
    ("largest", "stored"),
    [(2**24 + 2, np.float32), (2.0**60, np.float64), (2**53 + 2, np.int64), (2**64 - 1, np.uint64)],
)
def test_labels_that_cannot_keep_their_numbers_are_refused(
    tmp_path: Path, largest: float, stored: type[np.generic]
) -> None:
    image = sitk.GetImageFromArray(np.array([0, largest], stored)[np.arange(8).reshape(2, 2, 2) % 2])
    one_line(lambda: io.read_labels(written(image, tmp_path / "a.nrrd")), "a label must be at most")


def test_a_mask_is_not_nan(tmp_path: Path, scan: sitk.Image) -> None:
    mask = sitk.Cast(scan > 500, sitk.sitkFloat32)
    mask[1, 1, 1] = float("nan")
    one_line(lambda: io.read_mask(written(mask, tmp_path / "a.nrrd"), Grid.of(scan)), "1 voxels of the mask are NaN")


# ---- transforms


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "hdr"])
def test_an_image_of_displacements_is_a_transform(tmp_path: Path, ending: str) -> None:
    """As ANTs and greedy write it: three components a voxel, mm, LPS, whatever the format."""
    values = np.zeros((5, 6, 7, 3))
    values[...] = (3.0, -2.0, 1.0)
    field = sitk.GetImageFromArray(values, isVector=True)
    field.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    transform = io.read_transform(written(field, tmp_path / f"1Warp.{ending}"))
    point = field.TransformContinuousIndexToPhysicalPoint((3.0, 2.0, 2.0))
    assert transform.TransformPoint(point) == pytest.approx(np.add(point, (3.0, -2.0, 1.0)))


def test_a_nifti_that_says_displacement_is_in_ras(tmp_path: Path) -> None:
    field = sitk.GetImageFromArray(np.full((4, 4, 4, 3), 1.0), isVector=True)
    path = written(field, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<h", content, 68, 1006)  # NIFTI_INTENT_DISPVECT
    path.write_bytes(content)
    assert io.read_transform(path).TransformPoint((1.0, 1.0, 1.0)) == pytest.approx((0.0, 0.0, 2.0))


def test_vectors_of_another_kind_are_refused(tmp_path: Path, scan: sitk.Image) -> None:
    field = sitk.GetImageFromArray(np.ones((4, 4, 4, 3)), isVector=True)
    path = written(field, tmp_path / "y_a.nii")
    content = bytearray(path.read_bytes())
    content[328:335] = b"Mapping"  # positions, of SPM
    path.write_bytes(content)
    one_line(lambda: io.read_transform(path), "vectors of the kind 'Mapping'")
    path = written(field, tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"left-posterior", b"right-anterior"))
    one_line(lambda: io.read_transform(path), "right-anterior-superior")
    one_line(lambda: io.read_transform(written(scan, tmp_path / "b.nii")), "holds no transform: it is an image with 3")
    broken = sitk.Image(field)
    broken[1, 1, 1] = (0.0, float("nan"), 0.0)
    one_line(lambda: io.read_transform(written(broken, tmp_path / "c.mha")), "not finite")


@pytest.mark.parametrize("ending", ["h5", "tfm", "mat", "xfm"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_cut_transform_is_refused(
    tmp_path: Path, ending: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"t.{ending}"
    sitk.WriteTransform(sitk.AffineTransform([1, 0.5, 0, 0, 1, 0, 0, 0, 1], [3, 4, 5]), str(path))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    one_line(lambda: io.read_transform(path), "is damaged, or holds no transform")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Affine", b"Affin\xe5"),
        (b"AffineTransform_double_3_3", b"AffineTransform_double_300_300"),
        (b"Parameters: 1", b"Parameters: nan"),
        (b"Parameters: 1", b"Parameters: 1e300"),
        (b"Parameters: 1 0 0", b"Parameters: 1"),
        (b"Parameters: 1", b"Parameters: 1 2 3 4 5 6 7 8 9 10 11 12 13"),
        (b"FixedParameters: 0 0 0", b"FixedParameters: 0"),
        (b"FixedParameters: 0 0 0", b"FixedParameters: nan 0 0"),
    ],
)
def test_a_transform_in_text_is_checked(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "t.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(path))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    one_line(lambda: io.read_transform(path), "damaged|not finite|squeezes|2-D")


@pytest.mark.parametrize("ending", ["mat", "tfm"])
def test_a_transform_cut_amid_its_last_number_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.{ending}"
    sitk.WriteTransform(sitk.Euler3DTransform([3.0, 4.0, 5.125], 0.1, 0.2, 0.3), str(path))
    path.write_bytes(path.read_bytes()[:-3])
    one_line(lambda: io.read_transform(path), "is damaged, or holds no transform")


def test_a_single_precision_mat_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.mat"
    parts = [(b"AffineTransform_float_3_3\0", [1, 0, 0, 0, 1, 0, 0, 0, 1, 3, 4, 5]), (b"fixed\0", [0, 0, 0])]
    content = (struct.pack(f">5I{len(name)}s{len(v)}f", 1010, len(v), 1, 0, len(name), name, *v) for name, v in parts)
    path.write_bytes(b"".join(content))
    assert io.read_transform(path).TransformPoint((0.0, 0.0, 0.0)) == (3.0, 4.0, 5.0)


def test_spaces_in_a_transform_in_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), str(path))
    path.write_bytes(path.read_bytes().replace(b"\nParameters: ", b"\n Parameters :\t").replace(b"\n", b"\r\n"))
    assert io.read_transform(path).TransformPoint((0.0, 0.0, 0.0)) == (1.0, 2.0, 3.0)


def test_a_kind_without_a_class_in_simpleitk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c3d.txt"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 1 0.5 0 0 1 0 0 0 2 3 4 5\nFixedParameters: 1 1 1\n"
    )
    point, raw = (1.0, 2.0, 3.0), sitk.ReadTransform(str(path))
    back = io.read_transform(path)
    assert back.TransformPoint(point) == raw.TransformPoint(point) == (4.5, 6.0, 10.0)
    checked = io.check_transform(raw, "start")
    part = sitk.CompositeTransform(checked).GetNthTransform(0)
    assert isinstance(part, sitk.AffineTransform)
    assert part.TransformPoint(point) == raw.TransformPoint(point)


def test_displacements_beside_an_xfm_are_found(tmp_path: Path) -> None:
    warp = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 5, 6, 3)), isVector=True)
    path = tmp_path / "warp.xfm"
    sitk.WriteTransform(sitk.DisplacementFieldTransform(sitk.Image(warp)), str(path))
    expected = sitk.DisplacementFieldTransform(warp).TransformPoint((1.0, 2.0, 2.5))
    assert io.read_transform(path).TransformPoint((1.0, 2.0, 2.5)) == pytest.approx(expected)


def test_every_kind_of_transform_comes_back(tmp_path: Path, scan: sitk.Image) -> None:
    warp = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 5, 6, 3)), isVector=True)
    parts = [
        sitk.Euler3DTransform([1.0, 2.0, 3.0], 0.1, 0.2, 0.3),
        sitk.BSplineTransformInitializer(scan, [2, 2, 2]),
        sitk.DisplacementFieldTransform(warp),
    ]
    for transform in (*parts, sitk.CompositeTransform(parts)):
        for ending in ("h5", "tfm"):
            io.write_transform(transform, tmp_path / f"t.{ending}")
            back = io.read_transform(tmp_path / f"t.{ending}")
            assert back.GetName() == transform.GetName()
            assert back.TransformPoint((1.0, 2.0, 2.5)) == pytest.approx(transform.TransformPoint((1.0, 2.0, 2.5)))


# ---- axes that are slightly off right angles

SHEAR = 5e-4


def sheared(
    image: sitk.Image, path: Path, shear: float
) -> tuple[Path, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """A NIfTI that has an sform alone; the path, and the matrix from index to LPS mm that it means."""
    axes = np.reshape(sitk.Euler3DTransform([0.0] * 3, 0.4, 0.05, -0.1).GetMatrix(), (3, 3)).copy()
    axes[:, 1] += shear * axes[:, 0]
    affine = np.column_stack([axes * image.GetSpacing(), [-9.0, -5.0, -18.0]])
    written(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)
    struct.pack_into("<12f", content, 280, *affine.ravel().tolist())
    path.write_bytes(content)
    return path, np.diag([-1.0, -1.0, 1.0]) @ affine


def test_a_slight_shear_is_refused_with_a_remedy(tmp_path: Path, scan: sitk.Image) -> None:
    path, _ = sheared(scan, tmp_path / "a.nii", SHEAR)
    for read in (io.read_image, io.read_grid):
        one_line(lambda read=read: read(path), r"0\.029 degrees .*--reorient nearest", GeometryError)  # type: ignore[misc]


@pytest.mark.parametrize("shear", [2e-4, 5e-4, 5e-3])
def test_the_nearest_rotation_is_taken_about_the_middle(tmp_path: Path, scan: sitk.Image, shear: float) -> None:
    path, affine = sheared(scan, tmp_path / "a.nii", shear)
    with pytest.warns(RuntimeWarning, match="the nearest rotation is taken, which moves no corner") as told:
        image = io.read_image(path, reorient="nearest")
    grid = Grid.of(image)
    rotation = np.reshape(grid.direction, (3, 3))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert grid.spacing_mm == pytest.approx(scan.GetSpacing())
    last = np.array(scan.GetSize()) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1).T
    apart = np.linalg.norm(grid.to_physical(corners) - (corners @ affine[:, :3].T + affine[:, 3]), axis=1)
    assert f"more than {apart.max():.2g} mm" in str(told[0].message)
    middle = last / 2
    np.testing.assert_allclose(grid.to_physical(middle), affine[:, :3] @ middle + affine[:, 3], atol=1e-4)
    unit = affine[:, :3] / scan.GetSpacing()
    nearby = np.reshape(sitk.Euler3DTransform([0.0] * 3, shear / 4, 0.0, 0.0).GetMatrix(), (3, 3)) @ rotation
    assert np.linalg.norm(rotation - unit) < np.linalg.norm(nearby - unit)
    with pytest.warns(RuntimeWarning, match="nearest rotation"):
        assert io.read_grid(path, reorient="nearest").matches(grid)
    mask = sheared(sitk.Cast(scan > 500, sitk.sitkUInt8), tmp_path / "mask.nii", shear)[0]
    with pytest.warns(RuntimeWarning, match="nearest rotation"):
        assert Grid.of(io.read_mask(mask, grid, reorient="nearest")).matches(grid)
    with pytest.warns(RuntimeWarning, match="nearest rotation"):
        assert Grid.of(io.read_labels(path, reorient="nearest")).matches(grid)


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_a_shear_in_another_format_is_mended_alike(tmp_path: Path, scan: sitk.Image, ending: str) -> None:
    image = sitk.Image(scan)
    image.SetDirection((1, 0.01, 0, 0, 1, 0, 0, 0, 1))
    path = written(image, tmp_path / f"a.{ending}")
    one_line(lambda: io.read_image(path), "--reorient nearest", GeometryError)
    with pytest.warns(RuntimeWarning, match=r"0\.57 degrees"):
        back = io.read_image(path, reorient="nearest")
    np.testing.assert_allclose(np.reshape(back.GetDirection(), (3, 3))[0, 1], 0.005, atol=1e-4)  # half each


def test_a_large_shear_is_in_the_voxels(tmp_path: Path, scan: sitk.Image) -> None:
    path, _ = sheared(scan, tmp_path / "a.nii", 0.1)
    one_line(lambda: io.read_image(path, reorient="nearest"), "5.7 degrees .*resample it", GeometryError)
    one_line(lambda: io.read_image(path, reorient="furthest"), "reorient must be", ConfigError)  # type: ignore[arg-type]


def test_what_is_upright_stays_as_it_is(tmp_path: Path, volume: sitk.Image) -> None:
    path = written(volume, tmp_path / "a.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Grid.of(io.read_image(path, reorient="nearest")).matches(Grid.of(io.read_image(path)))


def test_commands_that_read_scans_reorient(tmp_path: Path) -> None:
    pair = make_pair(20, 10.0)
    fixed, _ = sheared(pair.fixed, tmp_path / "fixed.nii", SHEAR)
    moving = written(pair.moving, tmp_path / "moving.nii")
    arguments = ["register", str(fixed), str(moving), "-o", str(tmp_path / "out"), *QUICK]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "--reorient nearest" in refused.stderr
    done = CliRunner().invoke(app, [*arguments, "--reorient", "nearest"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "moved.nii.gz").is_file()
    done = CliRunner().invoke(
        app, ["represent", str(fixed), "-o", str(tmp_path / "a.mha"), "--reorient", "nearest", "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    (tmp_path / "pairs.csv").write_text("fixed,moving\nfixed.nii,moving.nii\n")
    arguments = ["register-batch", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "batch"), *QUICK, "--workers", "1"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    done = CliRunner().invoke(app, [*arguments, "--reorient", "nearest"])
    assert done.exit_code == 0, done.output


# ---- memory


def test_words_for_no_memory() -> None:
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("itk::ERROR:\nFailed to allocate memory for image."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("the disk is full"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_a_scan_that_does_not_fit_into_memory_is_one_line(tmp_path: Path, scan: sitk.Image) -> None:
    large = written(sitk.Image([800, 800, 800], sitk.sitkUInt8), tmp_path / "a.nii.gz", True)
    command = [sys.executable, "-c", MAIN, "register", large, written(scan, tmp_path / "b.nii")]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))

    done = subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "out"), "--threads", "1"],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert [line[:6] for line in done.stderr.splitlines()] == ["error:"]
