"""Read an image file of any format, after the checks of its format; what its voxels mean is seen to elsewhere."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, GeometryError, is_out_of_memory
from dsir_metric.io import gipl, metaimage, nifti, nrrd
from dsir_metric.io.apart import read_apart
from dsir_metric.io.files import aliased, regular_file
from dsir_metric.io.header import Header
from dsir_metric.io.reorient import Placement, Reorient, check_reorient, upright

__all__ = ["Layout", "intent", "read_layout", "read_voxels"]

_JUDGED: dict[str, tuple[str, Callable[[Path], Header | None]]] = {
    ending: (reader, module.inspect)
    for reader, module in (
        ("NiftiImageIO", nifti),
        ("NrrdImageIO", nrrd),
        ("MetaImageIO", metaimage),
        ("GiplImageIO", gipl),
    )
    for ending in module.ENDINGS
}
_APART = {".mnc": "MINCImageIO", ".dcm": "GDCMImageIO", ".ima": "GDCMImageIO"}
_KNOWN = "NIfTI, Analyze, NRRD, MetaImage, GIPL, MINC, a DICOM file of a volume, OME-Zarr"
_DICOM = (128, b"DICM")  # where it says what it is, and how
_SERIES = "give an image file (convert a DICOM series to one first)"
_PLACE = ("size", "spacing", "origin", "direction")
_PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"  # of ITK's reader, which looks at its environment each time
_environment = threading.Lock()


@dataclass(frozen=True, eq=False)
class Layout:
    """What the header of an image says.

    Parameters
    ----------
    size : tuple of int
        Voxels along each axis.
    spacing_mm, origin_mm : tuple of float
        LPS.
    direction : ndarray (n, n)
        Columns are the index axes.
    components : int
        Of each voxel.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: NDArray[np.float64]
    components: int

    @classmethod
    def of(cls, file: sitk.ImageFileReader | sitk.Image, components: int) -> Layout:
        """That of an image, or of a file whose header was read."""
        said = {name: getattr(file, f"Get{name.title()}")() for name in _PLACE}
        return cls.said(said | {"components": components})

    @classmethod
    def said(cls, said: Mapping[str, Any]) -> Layout:
        """That of an answer of `read_apart`."""
        size = tuple(said["size"])
        direction = np.reshape(said["direction"], (len(size), len(size)))
        return cls(size, tuple(said["spacing"]), tuple(said["origin"]), direction, said["components"])

    def placed(self, place: Placement) -> Layout:
        """With another place of its first three axes."""
        origin, direction = np.array(self.origin_mm), self.direction.copy()
        origin[:3], direction[:3, :3] = place.origin_mm, place.direction
        return Layout(self.size, self.spacing_mm, tuple(origin.tolist()), direction, self.components)


def read_layout(path: Path, reorient: Reorient | None = None) -> Layout:
    """What a file says about its image; of the voxels, whether the file can hold them.

    Raises
    ------
    DataError, GeometryError
        As `read_voxels`.
    """
    check_reorient(reorient)
    reader, header = _inspect(path)
    with _translating(path):
        if header is None:
            said = read_apart("header", reader, _utf8(path), "", str(path))
            return _mended(Layout.said(said), None, path, reorient)
        header.check_length(str(path))
        with aliased(header.files) as name:
            file = _reader(name, reader)
            axes = _permitted(file.ReadImageInformation, header, path)
            return _mended(Layout.of(file, file.GetNumberOfComponents()), axes, path, reorient)


def read_voxels(path: Path, reorient: Reorient | None = None) -> sitk.Image:
    """Read an image of any dimension and type; a fourth axis of length 1 is dropped.

    Parameters
    ----------
    path : Path
    reorient : {"nearest"}, optional
        See `upright`.

    Raises
    ------
    DataError
        If there is no such file, it is no image of a format that is known, or it is truncated or damaged.
    GeometryError
        If its axes are off right angles, or its spacing has a zero.
    ConfigError
        If `reorient` names nothing.
    MemoryError
        If it does not fit into memory.
    """
    check_reorient(reorient)
    reader, header = _inspect(path)
    with _translating(path):
        if header is None:
            with tempfile.TemporaryDirectory(prefix="dsir-") as folder:
                copy = os.path.join(folder, "copy.mha")
                read_apart("image", reader, _utf8(path), copy, str(path))
                image, axes = sitk.ReadImage(copy, imageIO="MetaImageIO"), None
        else:
            header.check_data(str(path))
            with aliased(header.files) as name:
                file = _reader(name, reader)
                images: list[sitk.Image] = []
                axes = _permitted(lambda: images.append(file.Execute()), header, path)
                image = images[0]
        if image.GetDimension() == 4 and image.GetSize()[3] == 1:
            image = image[:, :, :, 0]
    layout = Layout.of(image, image.GetNumberOfComponentsPerPixel())
    mended = _mended(layout, axes, path, reorient)
    if mended is not layout:
        image.SetOrigin(mended.origin_mm)
        image.SetDirection(mended.direction.ravel().tolist())
    return image


def intent(path: Path) -> str:
    """What a file calls the meaning of its voxels, or (NRRD) the space of its axes; empty where it does not."""
    header = _inspect(path)[1]
    return "" if header is None else header.intent


def _inspect(path: Path) -> tuple[str, Header | None]:
    """The reader of ITK for a file, and the promise of its header where that can be judged here."""
    regular_file(path, _SERIES)
    name = path.name.lower()
    for ending, (reader, inspect) in sorted(_JUDGED.items(), key=lambda item: -len(item[0])):
        if name.endswith(ending):
            return reader, inspect(path)
    with path.open("rb") as file:
        file.seek(_DICOM[0])
        dicom = file.read(len(_DICOM[1])) == _DICOM[1]
    apart = "GDCMImageIO" if dicom else _APART.get(path.suffix.lower())
    if apart is None:
        raise DataError(f"{path}: is no image of a format that is read ({_KNOWN}); convert it to one of them first")
    return apart, None


def _reader(name: str, image_io: str) -> sitk.ImageFileReader:
    file = sitk.ImageFileReader()
    file.SetImageIO(image_io)
    file.SetFileName(name)
    return file


def _permitted(read: Callable[[], object], header: Header, path: Path) -> NDArray[np.float64] | None:
    """Read; the axes of the header where ITK refuses those, in which case it is made to read all the same."""
    try:
        read()
    except RuntimeError as error:
        if "orthonormal" not in str(error) or header.axes is None:
            raise
    else:
        return None
    with _environment:
        before = os.environ.get(_PERMISSIVE)
        os.environ[_PERMISSIVE] = "1"
        try:
            read()
        finally:
            if before is None:
                del os.environ[_PERMISSIVE]
            else:
                os.environ[_PERMISSIVE] = before
    return header.axes


def _mended(layout: Layout, axes: NDArray[np.float64] | None, path: Path, reorient: Reorient | None) -> Layout:
    """The layout with its axes at right angles; as it is where they are, or where it is no volume.

    `axes` are those of the header where ITK refused them.
    """
    if len(layout.size) not in (3, 4) or any(n != 1 for n in layout.size[3:]):
        return layout
    columns = layout.direction[:3, :3] if axes is None else axes
    orthonormal = np.allclose(columns.T @ columns, np.eye(3), atol=1e-3)  # as `Grid` takes it
    if axes is None and reorient is None and orthonormal:
        return layout
    size, spacing, origin = layout.size[:3], layout.spacing_mm[:3], layout.origin_mm[:3]
    return layout.placed(upright(size, spacing, origin, columns, str(path), reorient))


def _utf8(path: Path) -> str:
    """The name as ITK takes it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(path)!r}: the name is not UTF-8; rename the file") from error
    return str(path.absolute())


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    """What SimpleITK says in many lines, as one of ours in one."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: does not fit into memory") from error
        if "Zero-valued spacing" in text:
            raise GeometryError(f"{path}: the spacing has a zero; mend the header") from error
        if "orthonormal" in text or "Determinant" in text:
            raise GeometryError(f"{path}: the direction matrix is not orthonormal; mend the header") from error
        raise DataError(f"{path}: is truncated or damaged; copy the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
