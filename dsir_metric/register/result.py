"""What a registration gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import SimpleITK as sitk

from dsir_metric.geometry import Grid
from dsir_metric.represent.background import background, check_fill

__all__ = ["Progress", "RegistrationResult", "StageReport"]


@dataclass(frozen=True)
class Progress:
    """How far a registration has come: current stage, overall fraction in [0, 1], metric where there is one."""

    stage: str
    fraction: float
    metric: float | None = None


@dataclass(frozen=True)
class StageReport:
    """What one stage did.

    Parameters
    ----------
    name : str
    kept : bool
        False if its outcome was undone.
    remark : str
        Why it was undone, or what it had to change on its way; empty when there is nothing to tell.
    cosine_before, cosine_after : float
        Mean cosine over the foreground of the fixed image, on the same points; `after` is what the stage found.
    seconds : float
    trace : tuple of float
        Metric (negated mean cosine, plus the smoothness penalty in the deformable stage) after each iteration.
    """

    name: str
    kept: bool
    remark: str
    cosine_before: float
    cosine_after: float
    seconds: float
    trace: tuple[float, ...] = ()


@dataclass(frozen=True)
class RegistrationResult:
    """Outcome of `register`.

    Parameters
    ----------
    transform : sitk.CompositeTransform
        Fixed points to moving points, LPS mm.
    fixed_grid : Grid
        Where moved images are sampled.
    stages : tuple of StageReport
    details : mapping
        Configuration, models, intensity rules, Jacobian statistics, seconds and versions, fit for JSON.
    inverse : sitk.CompositeTransform, optional
        Moving points to fixed points, where the deformation has an inverse that is known.
    """

    transform: sitk.CompositeTransform
    fixed_grid: Grid
    stages: tuple[StageReport, ...]
    details: dict[str, object] = field(default_factory=dict)
    inverse: sitk.CompositeTransform | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting the result."""
        found = self.details.get("warnings", [])
        return tuple(found) if isinstance(found, list) else ()

    @property
    def undone(self) -> tuple[str, ...]:
        """Names of the stages whose outcome was undone."""
        return tuple(s.name for s in self.stages if not s.kept)

    def moved(self, image: sitk.Image, *, labels: bool = False, fill: float | None = None) -> sitk.Image:
        """`image` (in the space of moving) on the fixed grid, resampled once.

        Parameters
        ----------
        image : sitk.Image
        labels : bool
            Nearest neighbour for labels, linear otherwise.
        fill : float, optional
            Value of what lies outside `image`; by default its background, see `dsir_metric.represent.background`, and
            0 for labels.

        Returns
        -------
        sitk.Image
            Of the pixel type of `image`.

        Raises
        ------
        ConfigError
            If the pixel type of `image` cannot hold `fill`.
        """
        interpolator = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        if fill is None:
            fill = 0.0 if labels else background(image)
        outside = check_fill(fill, image)
        return sitk.Resample(image, self.fixed_grid.image(), self.transform, interpolator, outside, image.GetPixelID())

    def to_dict(self) -> dict[str, object]:
        """Everything but the transform itself, as plain values."""
        stages = [{**vars(s), "trace": [round(v, 6) for v in s.trace]} for s in self.stages]
        return {"stages": stages, **self.details}
