"""Views of two scans of one anatomy, in two real contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.evaluate import overlay, read_outline
from dsir_metric_train.views.appearance import Appearance, random_appearance
from dsir_metric_train.views.cache import Cache
from dsir_metric_train.views.placement import BACKGROUND, Placement, Views, Volume, inside
from dsir_metric_train.views.scans import FromFiles, check_headers, coarser, isotropic

__all__ = ["Pairs", "Partner"]

_AROUND_MM = 5.0  # so far beyond its outline the scans count as laid over each other


@dataclass(frozen=True)
class Partner:
    """What belongs to a scan: the other scan, and the outlines of an organ in both, if they lie apart."""

    scan: Path
    outlines: tuple[Path, Path] | None = None


class Pairs(FromFiles):
    """Two scans of one anatomy that lie on each other, or are laid over each other by the outlines of an organ.

    Parameters
    ----------
    files : sequence of Path
        The first scan of each pair.
    partners : sequence of Partner
        What belongs to each of them.
    placement, appearance, intensity, assume_spacing_mm, cache
        As in `FromFiles`; spacing and intensity of both scans, and of the outlines.

    Raises
    ------
    DataError, ShapeError
        If a header tells that a scan is smaller than a crop or 2-D.
    """

    def __init__(
        self,
        files: Sequence[Path],
        partners: Sequence[Partner],
        placement: Placement,
        appearance: Appearance,
        intensity: str = "auto",
        assume_spacing_mm: float = 0.0,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(files, placement, appearance, intensity, assume_spacing_mm, cache)
        check_headers([p.scan for p in partners], placement, assume_spacing_mm)
        self.partner = dict(zip(files, partners, strict=True))

    def key(self, file: Path) -> tuple[object, ...]:
        """All that the volumes of one pair depend on."""
        return (*super().key(file), self.partner[file])

    def read(self, file: Path) -> tuple[Volume, ...]:
        """Both scans in [0, 1] and where they count (0 or 1), (z, y, x), at 1 mm, and the same at 2 mm.

        Raises
        ------
        DataError, ShapeError, GeometryError
            If a scan is none that `read_image` takes, is smaller than a crop or all background, or the two share
            nothing.
        """
        partner = self.partner[file]
        scan, other = self.open(file), self.open(partner.scan)
        transform, organ = sitk.Transform(3, sitk.sitkIdentity), None
        if partner.outlines is not None:
            organ, there = (self.believed(read_outline(f)) for f in partner.outlines)
            transform = overlay(organ, there, smooth=True)
        first = self.normalised(scan, file)
        second = self.normalised(other, partner.scan, scan, transform)
        shown = isotropic(sitk.Cast(other * 0 + 1, sitk.sitkUInt8), 1.0, labels=True, like=scan, transform=transform)
        where = _around(organ, scan) if organ is not None else first > BACKGROUND
        fine = (first, second, (where & (shown > 0)).astype(np.float32))
        return (*fine, *map(coarser, fine))

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of one scan of a random pair, and the same place of the other; both changed in appearance.

        Raises
        ------
        DsirError
            If no pair can be used; what the first one gave.
        """
        volumes = self.any(rng)
        matrix, warp = self.placement.draw(rng)
        (one, other, where), unit = (volumes[3:], 2.0) if np.linalg.norm(matrix[0]) > 1.5 else (volumes[:3], 1.0)
        if rng.uniform() < 0.5:
            one, other = other, one
        centre = inside(rng, where)
        first, second = self.placement.cut_both(one, centre, matrix / unit, warp, order=1, other=other)
        counts = self.placement.cut(where, centre, matrix / unit, order=1) > 0.5
        first, second = (random_appearance(rng, view, self.appearance) for view in (first, second))
        return Views(first, second, counts, warp)


def _around(organ: sitk.Image, scan: sitk.Image) -> NDArray[np.bool_]:
    """Where the organ and its surroundings are, on the grid of the scan at 1 mm."""
    distance = sitk.SignedMaurerDistanceMap(organ, False, False, True)
    near = sitk.Cast(distance <= _AROUND_MM, sitk.sitkUInt8)
    return isotropic(near, 1.0, labels=True, like=scan) > 0
