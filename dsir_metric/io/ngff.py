"""The metadata of an OME-Zarr image: what its axes are and where its voxels lie, as a `Grid` and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError, GeometryError, ShapeError
from dsir_metric.geometry import Grid

__all__ = ["ATTRIBUTE", "Metadata", "Version", "attributes", "parse"]

Version = Literal["0.4", "0.5"]
Array = NDArray[np.float64]

ATTRIBUTE = "dsir_metric"  # of the group: the direction that OME-Zarr has no place for
_SPACE = ("x", "y", "z")
_KINDS = {"x": "space", "y": "space", "z": "space", "c": "channel", "t": "time"}
_MM = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "nm": 1e-6,
    "micrometer": 1e-3,
    "micron": 1e-3,
    "um": 1e-3,
    "\N{MICRO SIGN}m": 1e-3,
    "\N{GREEK SMALL LETTER MU}m": 1e-3,
    "millimeter": 1.0,
    "mm": 1.0,
    "centimeter": 10.0,
    "cm": 10.0,
    "decimeter": 100.0,
    "meter": 1000.0,
    "m": 1000.0,
    "inch": 25.4,
}
_ORIENTATIONS = {  # RFC 4: where an axis runs, as a unit vector in LPS
    "right-to-left": (1.0, 0.0, 0.0),
    "left-to-right": (-1.0, 0.0, 0.0),
    "anterior-to-posterior": (0.0, 1.0, 0.0),
    "posterior-to-anterior": (0.0, -1.0, 0.0),
    "inferior-to-superior": (0.0, 0.0, 1.0),
    "superior-to-inferior": (0.0, 0.0, -1.0),
}
_NAMES = {vector: name for name, vector in _ORIENTATIONS.items()}
_ALIGNED = 1e-6  # a direction whose cosines are that near to 0 and 1 lies along the patient's axes


@dataclass(frozen=True, eq=False)
class Metadata:
    """What the group of an OME-Zarr image says.

    Parameters
    ----------
    axes : tuple of str
        Of the arrays, in their order: "x", "y", "z" of space, "c" of the channels, "t" of time, or any other name.
    levels : mapping
        Scale and translation in mm, an entry an axis, by the path of the array of a level; the finest level first.
    direction : ndarray (n, n)
        Columns are the unit vectors, in LPS, of the spatial axes x, y (and z).
    channel_names : tuple of str
        As far as they are known.
    ours : bool
        Whether this package wrote it, hence every chunk.
    """

    axes: tuple[str, ...]
    levels: Mapping[str, tuple[Array, Array]]
    direction: Array
    channel_names: tuple[str, ...] = ()
    ours: bool = False

    def grid(self, level: str, shape: Sequence[int]) -> Grid:
        """Where the voxels of the array of a level, of that shape, lie.

        Raises
        ------
        GeometryError
            If they lie nowhere.
        ShapeError
            If the array has another number of axes.
        """
        if len(shape) != len(self.axes):
            raise ShapeError(f"the array of level {level} has {len(shape)} axes, its metadata {len(self.axes)}")
        scale, translation = self.levels[level]
        space = [self.axes.index(name) for name in _SPACE if name in self.axes]
        size, spacing = [shape[a] for a in space], scale[space].tolist()
        with np.errstate(invalid="ignore", over="ignore"):  # `Grid` refuses what is not finite
            origin, direction = (self.direction @ translation[space]).tolist(), np.eye(3)
        direction[: len(space), : len(space)] = self.direction
        if len(space) == 2:
            size, spacing, origin = [*size, 1], [*spacing, min(spacing)], [*origin, 0.0]
        x, y, z = size
        return Grid((x, y, z), tuple(spacing), tuple(origin), tuple(direction.ravel().tolist()), len(space))


def parse(attributes: Mapping[str, Any], name: str) -> Metadata:
    """Understand the attributes of a group; `name` begins warnings and error messages.

    Warns
    -----
    RuntimeWarning
        Of a unit or an orientation that is missing, and what is taken instead.

    Raises
    ------
    DataError
        If it is another version than 0.4 or 0.5, or something that these do not have.
    GeometryError
        If a unit is no length or the orientation of the axes contradicts itself.
    KeyError, TypeError, ValueError, AttributeError
        If the metadata are not built as they should be.

    Notes
    -----
    A position in mm along the axes is scale x index + translation; the translation is that of the centre of the first
    voxel. The direction turns it into LPS. It is that of our own attribute; or that of the orientation of the axes
    (RFC 4), whose positions grow as it says; or none is known and the axes are taken for L, P and S.

    References
    ----------
    https://ngff.openmicroscopy.org/specifications/0.5, https://ngff.openmicroscopy.org/rfc/4.
    """
    ome = attributes.get("ome", attributes)
    image = ome["multiscales"][0]
    version = str(ome.get("version", image.get("version", "0.4")))
    if not version.startswith(("0.4", "0.5")):
        raise DataError(f"{name}: is OME-Zarr {version}; 0.4 and 0.5 are read: convert it to one of them")
    axes = _named(image["axes"], name)
    space = [axes[n] for n in _SPACE if n in axes]
    mm = np.array([_mm(axis, n, name) for n, axis in axes.items()])
    if any(axis.get("unit") is None for axis in space):
        _warn(f"{name}: says no unit of length for its axes; mm are taken")
    outer = image.get("coordinateTransformations") or []
    levels = {}
    for dataset in image["datasets"]:
        scale, translation = _placed([*dataset["coordinateTransformations"], *outer], len(axes), name)
        levels[str(dataset["path"])] = (scale * mm, translation * mm)
    ours = attributes.get(ATTRIBUTE)
    direction = _oriented(space, name) if ours is None else np.array(ours["direction"], float)
    labels = [str(channel.get("label") or "") for channel in (ome.get("omero") or {}).get("channels", [])]
    return Metadata(tuple(axes), levels, direction, tuple(labels), ours is not None)


def attributes(
    grid: Grid, components: bool, version: Version, provenance: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Attributes of a group whose one array "0" has the axes (z, y, x), (y, x) on a plane, after c of `components`.

    Parameters
    ----------
    grid : Grid
    components : bool
    version : {"0.4", "0.5"}
    provenance : mapping, optional
        Kept in our own attribute; fit for JSON.
    """
    dims = grid.dimension
    direction = np.reshape(grid.direction, (3, 3))[:dims, :dims]
    translation = np.linalg.solve(direction, np.asarray(grid.origin_mm[:dims]))
    axes: list[dict[str, object]] = [
        {"name": n, "type": "space", "unit": "millimeter", **_orientation(grid, k)} for k, n in enumerate(_SPACE[:dims])
    ]
    scale, offset = list(grid.spacing_mm[:dims]), translation.tolist()
    if components:
        axes.append({"name": "c", "type": "channel"})
        scale, offset = [*scale, 1.0], [*offset, 0.0]
    transformations = [
        {"type": "scale", "scale": scale[::-1]},
        {"type": "translation", "translation": offset[::-1]},
    ]
    image: dict[str, object] = {
        "axes": axes[::-1],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }
    own = {"direction": direction.tolist(), **({"provenance": dict(provenance)} if provenance else {})}
    if version == "0.4":
        return {"multiscales": [{"version": version, **image}], ATTRIBUTE: own}
    return {"ome": {"version": version, "multiscales": [image]}, ATTRIBUTE: own}


def is_aligned(grid: Grid) -> bool:
    """Whether the axes of a grid lie along the patient's, in any order and sense."""
    cosines = np.abs(np.asarray(grid.direction))
    return bool(np.all(np.minimum(cosines, np.abs(cosines - 1)) < _ALIGNED))


def _named(axes: Sequence[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    """The axes by what they are: "x", "y", "z", "c", "t", or their names where they are something else."""
    named = {}
    for axis in axes:
        kind = axis.get("type", _KINDS.get(axis["name"]))
        named[{"channel": "c", "time": "t"}.get(str(kind), str(axis["name"]))] = axis
    if len(named) < len(axes) or not {"x", "y"} <= set(named):
        told = ", ".join(str(axis["name"]) for axis in axes)
        raise DataError(f"{name}: has the axes {told}; x, y, perhaps z, and one each of channels and time are expected")
    return named


def _mm(axis: Mapping[str, Any], axis_name: str, name: str) -> float:
    unit = axis.get("unit")
    if axis_name not in _SPACE or unit is None:
        return 1.0
    if unit not in _MM:
        raise GeometryError(f"{name}: the unit of the axis {axis_name} is {unit!r}, no length; mend the metadata")
    return _MM[unit]


def _placed(transformations: Sequence[Mapping[str, Any]], axes: int, name: str) -> tuple[Array, Array]:
    """Scale and translation that several, one after the other, amount to."""
    scale, translation = np.ones(axes), np.zeros(axes)
    for entry in transformations:
        kind = entry["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in entry:
            raise DataError(f"{name}: has a transformation {kind!r} that is not read; scale and translation are")
        vector = np.asarray(entry[kind], float)
        if vector.shape != (axes,):
            raise DataError(f"{name}: has a {kind} of {vector.size} numbers for {axes} axes; mend the metadata")
        if kind == "scale":
            scale, translation = scale * vector, translation * vector
        else:
            translation = translation + vector
    return scale, translation


def _oriented(space: Sequence[Mapping[str, Any]], name: str) -> Array:
    """The direction that the orientations of the axes x, y (and z) say; the identity where they do not."""
    if len(space) == 2:
        return np.eye(2)
    said = [(axis.get("orientation") or {}).get("value") for axis in space]
    if not all(value in _ORIENTATIONS for value in said):
        told = "nothing" if said == [None] * 3 else f"{', '.join(map(str, said))}, which tells too little,"
        _warn(
            f"{name}: says {told} of how its axes x, y, z lie in the patient; they are taken to run to the left, the "
            "back and the head (LPS)"
        )
        return np.eye(3)
    direction = np.array([_ORIENTATIONS[str(value)] for value in said]).T
    if abs(np.linalg.det(direction)) < 0.5:
        raise GeometryError(f"{name}: has two axes along one ({', '.join(map(str, said))}); mend the metadata")
    return direction


def _orientation(grid: Grid, axis: int) -> dict[str, object]:
    """RFC 4's field of an axis, where it can be said."""
    if grid.dimension == 2 or not is_aligned(grid):
        return {}
    x, y, z = np.rint(np.reshape(grid.direction, (3, 3))[:, axis]).tolist()
    return {"orientation": {"type": "anatomical", "value": _NAMES[x, y, z]}}


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
