"""Volumes in one affine space with their representations, made once and kept in a cache; pairs of them, deformed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.config import to_dict
from dsir_metric.errors import ConfigError, DataError, DsirError
from dsir_metric.geometry import Grid
from dsir_metric.io import atomic, content_hash, read_image, read_labels
from dsir_metric.register import RegisterConfig, register
from dsir_metric.register.lapirn import near, on_grid
from dsir_metric.register.pair import Level, pyramid
from dsir_metric.represent import Representation, Representer
from dsir_metric.represent.foreground import foreground
from dsir_metric.represent.pair import resampled, working_grids
from dsir_metric.torch.warp import compose, exponential, warp
from dsir_metric_train.registration.recipe import Deformations, RegistrationRecipe, VolumeSource
from dsir_metric_train.views import find_images
from dsir_metric_train.views.appearance import smooth_noise
from dsir_metric_train.views.paint import paint_both
from dsir_metric_train.views.scans import isotropic

__all__ = ["Pair", "Preparation", "Volume", "deformed_pair", "random_velocity", "two_of"]

_FORMAT = 1
_MARGIN_MM = 12.0  # around the anatomy of the reference
_LINEAR = RegisterConfig(stages=("centre", "search", "rigid", "affine"))


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume in the common space.

    Parameters
    ----------
    file : str
        Whence, below the data folder: volumes of one file show one anatomy.
    image : Tensor of float16, shape (1, 1, z, y, x), in [0, 1]
    values : Tensor of float16, shape (1, channels, z, y, x)
        Descriptors of unit length.
    mask : Tensor of bool, shape (1, 1, z, y, x)
        Where the anatomy is.
    """

    file: str
    image: Tensor
    values: Tensor
    mask: Tensor

    def halved(self) -> Volume:
        """The volume at twice the voxel size."""
        image, values, mask = (F.avg_pool3d(v.float(), 2) for v in (self.image, self.values, self.mask))
        return Volume(self.file, image.half(), F.normalize(values, dim=1).half(), mask >= 0.5)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two volumes to register, float32, and where the loss counts; `truth` aligns them if they show one anatomy.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, channels, z, y, x)
    fixed_image, moving_image, mask : Tensor, shape (1, 1, z, y, x)
    truth : Tensor, shape (1, 3, z, y, x)
        Displacement, voxels.
    """

    fixed: Tensor
    moving: Tensor
    fixed_image: Tensor
    moving_image: Tensor
    mask: Tensor
    truth: Tensor


class Preparation:
    """Makes the volumes of a recipe, or takes them from the cache.

    Parameters
    ----------
    recipe : RegistrationRecipe
    root : Path
        Folder the file patterns are looked up in.
    cache : Path
        Folder of volumes; a name says what a volume was made from and how.
    on_note : callable, optional
        Receives a line on each file.

    Raises
    ------
    DataError
        If fewer than two volumes are left to train on, or none to validate on.
    ModelFileError, MissingDependencyError
        If the model of the representations cannot be used.
    """

    def __init__(
        self, recipe: RegistrationRecipe, root: Path, cache: Path, on_note: Callable[[str], None] | None = None
    ) -> None:
        self.recipe, self.root, self.cache = recipe, root, cache
        self.files = [(source, file) for source in recipe.sources for file in find_images(root, source.files)]
        self._note = on_note or (lambda _: None)
        names = [file for _, file in self.files]
        every = recipe.volumes.held_back
        self.held = set(names[every - 1 :: every] or names[-1:])
        trained = sum(source.variants for source, file in self.files if file not in self.held)
        if trained < 2:
            raise DataError(
                f"{root}: {len(names)} files came, which leaves {trained} volumes to train on when {len(self.held)} is "
                "held back; two volumes and one held back are needed: give more files, or more variants"
            )
        self.representer = Representer(recipe.volumes.model)
        self._hash = {file: content_hash(file) for file in names}
        self._source, self._reference = self._find_reference()
        self._seen: dict[float, tuple[sitk.Image, Representation, sitk.Image]] = {}

    def volumes(self) -> tuple[list[Volume], list[Volume]]:
        """Volumes to train on and volumes held back.

        Raises
        ------
        DsirError
            If a file cannot be used; it is named.
        """
        trained: list[Volume] = []
        held: list[Volume] = []
        for source, file in self.files:
            (held if file in self.held else trained).extend(self._of_file(source, file))
        return trained, held

    def _find_reference(self) -> tuple[VolumeSource, Path]:
        wanted = self.recipe.volumes.reference
        for source, file in self.files:
            if not wanted or file.relative_to(self.root).as_posix() == wanted:
                return source, file
        raise ConfigError(f"the reference {wanted!r} is not among the files of the sources; give one of these")

    def _of_file(self, source: VolumeSource, file: Path) -> Iterator[Volume]:
        name, transform = file.relative_to(self.root).as_posix(), None
        for variant in range(source.variants):
            path = self.cache / f"{self._key(source, file, variant)}.npz"
            if not path.exists():
                try:
                    if transform is None:
                        transform = self._aligned(source, file, name)
                    self._make(source, file, variant, transform, path)
                except DsirError as error:
                    raise type(error)(f"{name}: {error}; mend it, or leave it out") from error
            yield _read(path, name)

    def _key(self, source: VolumeSource, file: Path, variant: int) -> str:
        """Name of a volume: everything it depends on."""
        recipe, volumes = self.recipe, self.recipe.volumes
        made = [_FORMAT, self._hash[file], self._hash[self._reference], self.representer.model_hash]
        made += [to_dict(source), to_dict(self._source), variant, volumes.spacing_mm, list(volumes.represented_mm)]
        if "labels" in (source.kind, self._source.kind):
            made += [recipe.seed, to_dict(recipe.paint), to_dict(recipe.appearance)]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]

    def _spacing(self, variant: int) -> float:
        spacings = self.recipe.volumes.represented_mm
        return spacings[variant % len(spacings)]

    def _image(self, source: VolumeSource, file: Path, variant: int) -> sitk.Image:
        if source.kind == "scans":
            return read_image(file)
        seed = int(self._hash[file][:8], 16)
        rng = np.random.default_rng([self.recipe.seed, seed, variant])
        return _painted(
            rng, _labels(file, source, variant, self._spacing(variant)), self._spacing(variant), self.recipe
        )

    def _reference_at(self, spacing_mm: float) -> tuple[sitk.Image, Representation, sitk.Image]:
        """Image, representation and foreground of the reference."""
        if spacing_mm not in self._seen:
            image = self._image(self._source, self._reference, 0)
            grid = working_grids(Grid.of(image), Grid.of(image), spacing_mm)[0]
            seen = self._represented(image, grid, self._source.intensity)
            self._seen[spacing_mm] = image, seen, foreground(image, grid)
        return self._seen[spacing_mm]

    def _represented(self, image: sitk.Image, grid: Grid, intensity: str) -> Representation:
        rule = self.representer.rule(sitk.GetArrayViewFromImage(image), intensity)
        return self.representer(resampled(image, grid), rule)

    def _pair(self, source: VolumeSource, file: Path, variant: int) -> tuple[sitk.Image, sitk.Image, Level]:
        """The reference and a volume, and both representations at the spacing of a variant."""
        spacing = self._spacing(variant)
        reference, seen, body = self._reference_at(spacing)
        image = self._image(source, file, variant)
        grid = working_grids(Grid.of(reference), Grid.of(image), spacing)[1]
        return reference, image, Level(seen, self._represented(image, grid, source.intensity), body)

    def _aligned(self, source: VolumeSource, file: Path, name: str) -> sitk.Transform:
        """Affine transform from the reference to a file."""
        if file == self._reference:
            return sitk.Transform(3, sitk.sitkIdentity)
        reference, image, level = self._pair(source, file, 0)
        result = register(reference, image, _LINEAR, representations=(level.fixed, level.moving))
        self._note(f"{name}: mean cosine {result.details['mean_cosine']:.2f} after the affine stage")
        return result.transform

    def _common(self) -> Grid:
        """The box of the reference's anatomy and a margin, at the network's voxel size."""
        _, seen, body = self._reference_at(self._spacing(0))
        box = ndimage.find_objects(sitk.GetArrayViewFromImage(body))[0]
        margin = _MARGIN_MM / max(seen.grid.spacing_mm)
        low = np.array([cut.start for cut in box[::-1]]) - margin
        high = np.array([cut.stop for cut in box[::-1]]) - 1 + margin
        x, y, z = np.ceil((high - low + 1) * seen.grid.spacing_mm / self.recipe.volumes.spacing_mm).astype(int).tolist()
        edge = self.recipe.volumes.spacing_mm
        middle = seen.grid.to_physical((low + high) / 2)
        corner = middle - np.reshape(seen.grid.direction, (3, 3)) @ ((np.array([x, y, z]) - 1) / 2 * edge)
        return Grid((x, y, z), (edge,) * 3, tuple(corner.tolist()), seen.grid.direction)

    def _make(self, source: VolumeSource, file: Path, variant: int, transform: sitk.Transform, path: Path) -> None:
        """Write one volume on the common grid."""
        _, image, level = self._pair(source, file, variant)
        grid, edge = self._common(), self.recipe.volumes.spacing_mm
        seen = on_grid(near(pyramid(level), edge).moving, grid, transform)
        coarse = resampled(image, working_grids(level.fixed.grid, Grid.of(image), edge)[1])
        rule = self.representer.rule(sitk.GetArrayViewFromImage(image), source.intensity)
        scaled = Grid.of(coarse).stamp(sitk.GetImageFromArray(rule.apply(sitk.GetArrayFromImage(coarse))))
        moved = sitk.Resample(scaled, grid.image(), transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        with atomic(path) as temporary:
            np.savez(
                temporary,
                image=sitk.GetArrayFromImage(moved).astype(np.float16),
                values=np.moveaxis(seen.values, -1, 0).astype(np.float16),
                mask=sitk.GetArrayFromImage(foreground(moved, grid)) > 0,
            )


def _labels(file: Path, source: VolumeSource, variant: int, spacing_mm: float) -> NDArray[np.int64]:
    """A label map (z, y, x), stripped in every second variant, with one label a tissue."""
    labels = isotropic(read_labels(file), spacing_mm, labels=True).astype(np.int64)
    if source.strip_above and variant % 2 == 0:
        labels = np.where(labels >= source.strip_above, 0, labels)
    for group in source.one_tissue:
        labels = np.where(np.isin(labels, group), group[0], labels)
    return labels


def _painted(
    rng: np.random.Generator, labels: NDArray[np.int64], spacing_mm: float, recipe: RegistrationRecipe
) -> sitk.Image:
    """A label map as an image of random contrast, its background black: nothing there may pass for anatomy."""
    detail = smooth_noise(rng, labels.shape, int(rng.integers(16, 40)))
    views = paint_both(rng, (labels, labels), (detail, detail), recipe.paint, recipe.appearance, np.eye(3, 4))
    image = sitk.GetImageFromArray(np.where(labels > 0, views.first, np.float32(0)))
    image.SetSpacing([spacing_mm] * 3)
    return image


def _read(path: Path, name: str) -> Volume:
    try:
        with np.load(path) as content:
            image, values, mask = (torch.from_numpy(content[k]) for k in ("image", "values", "mask"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: is damaged; delete it, and it is made again") from error
    return Volume(name, image[None, None], values[None], mask[None, None])


def random_velocity(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: float, rule: Deformations
) -> Tensor:
    """A stationary velocity (1, 3, z, y, x), voxels: cosine waves, the longer the stronger, and a linear part."""
    counts = [max(2, round(rule.waves * n / max(shape))) + 1 for n in shape]
    waves = [
        np.cos(np.pi * np.outer((np.arange(n) + 0.5) / n, np.arange(k))) for n, k in zip(shape, counts, strict=True)
    ]
    order = np.sqrt(sum(np.square(k) for k in np.meshgrid(*[np.arange(k) for k in counts], indexing="ij")))
    drawn = rng.standard_normal((3, *counts)) / (1 + order)
    smooth = np.einsum("cabd,za,yb,xd->czyx", drawn, *waves, optimize=True)
    smooth *= rng.uniform(0, rule.smooth_mm) / np.sqrt(np.square(smooth).sum(axis=0).mean())
    matrix, shift = rng.uniform(-1, 1, (3, 3)) * rule.linear, rng.uniform(-1, 1, 3) * rule.shift_mm
    places = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))[::-1]
    velocity = (smooth + shift[:, None, None, None]) / spacing_mm + np.tensordot(matrix, places, 1)
    return torch.from_numpy(velocity.astype(np.float32))[None]


def deformed_pair(
    rng: np.random.Generator,
    fixed: Volume,
    moving: Volume,
    rule: Deformations,
    spacing_mm: float,
    device: torch.device,
) -> Pair:
    """Two volumes under one random deformation, the moving one under a second one on top.

    Both masks count, so that a head is compared with a skull-stripped brain where there is brain.
    """
    z, y, x = fixed.mask.shape[-3:]
    common, velocity = (random_velocity(rng, (z, y, x), spacing_mm, rule).to(device) for _ in range(2))
    common = exponential(common)
    both = compose(exponential(velocity), common)
    mask = _carried(fixed.mask, common) * _carried(moving.mask, common)
    return Pair(
        _carried(fixed.values, common),
        _carried(moving.values, both),
        _carried(fixed.image, common),
        _carried(moving.image, both),
        mask,
        exponential(-velocity),
    )


def _carried(volume: Tensor, displacement: Tensor) -> Tensor:
    return warp(volume.to(displacement), displacement)


def two_of(rng: np.random.Generator, volumes: Sequence[Volume], same: float) -> tuple[Volume, Volume]:
    """Two different ones, with probability `same` of one file if there are several of that."""
    first = volumes[int(rng.integers(len(volumes)))]
    others = [volume for volume in volumes if volume is not first]
    siblings = [volume for volume in others if volume.file == first.file]
    if siblings and rng.uniform() < same:
        others = siblings
    return first, others[int(rng.integers(len(others)))]
