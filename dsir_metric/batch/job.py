"""Registration from files to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.config import to_dict
from dsir_metric.errors import ConfigError, GeometryError
from dsir_metric.evaluate import dice
from dsir_metric.geometry import Grid
from dsir_metric.register import RegisterConfig, RegistrationResult, register
from dsir_metric.represent.background import background, check_fill

__all__ = ["INPUTS", "Job", "Scans", "settings_files"]


@dataclass(frozen=True)
class Job:
    """Files of one registration.

    Parameters
    ----------
    fixed, moving : Path
        Scalar 3-D scans.
    output : Path
        A folder.
    fixed_mask, moving_mask : Path, optional
        See `dsir_metric.register.register`.
    fixed_labels, moving_labels : Path, optional
        Labels of each scan: those of the moving one are moved along, both give Dice before and after.
    initial_transform : Path, optional
        Maps fixed to moving points.
    ending : str
        Of the images that are written, one of `dsir_metric.io.IMAGE_ENDINGS`.
    fill : float, optional
        Value of the moved scan outside the moving one; its background by default.
    reorient : {"nearest"}, optional
        What to do with axes that are slightly off right angles, see `dsir_metric.io.read_image`.

    Raises
    ------
    ConfigError
        If fixed labels come alone, or the ending names no format, or `reorient` nothing.
    """

    fixed: Path
    moving: Path
    output: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    initial_transform: Path | None = None
    ending: str = ".nii.gz"
    fill: float | None = None
    reorient: io.Reorient | None = None

    def __post_init__(self) -> None:
        io.check_reorient(self.reorient)
        if self.ending not in io.IMAGE_ENDINGS:
            raise ConfigError(f"the ending {self.ending!r} names no format; use one of {', '.join(io.IMAGE_ENDINGS)}")
        if self.fixed_labels and not self.moving_labels:
            raise ConfigError(
                "fixed labels came without moving labels; give both for Dice, or moving labels to be moved"
            )

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that are there to be read, by name."""
        return {name: getattr(self, name) for name in INPUTS if getattr(self, name) is not None}

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images that are written."""
        return tuple(f"{name}{self.ending}" for name in ("moved", *(["moved_labels"] if self.moving_labels else [])))

    def check_apart(self, config: RegisterConfig, settings: str | Path | None = None) -> None:
        """See that no file that is read would be written over; nothing is read for that.

        Parameters
        ----------
        config : RegisterConfig
            Its models are read as well.
        settings : str or Path, optional
            The file that `config` came from, or the name of settings that ship.

        Raises
        ------
        ConfigError
            If one would be.
        """
        io.check_apart([*self.named_inputs(), *settings_files(config, settings)], io.registration_files(self.output))

    def named_inputs(self) -> Iterator[tuple[str, Path]]:
        """The files that are there to be read, as a message calls them."""
        return ((f"the {name.replace('_', ' ')}", path) for name, path in self.inputs.items())

    def grids(self) -> tuple[Grid, Grid]:
        """Grids of the fixed and the moving scan, from their headers alone; see `dsir_metric.io.read_grid`."""
        return io.read_grid(self.fixed, reorient=self.reorient), io.read_grid(self.moving, reorient=self.reorient)

    def read(self) -> Scans:
        """Read every file, with every check.

        Raises
        ------
        DataError, ShapeError, GeometryError
            See `dsir_metric.io`; GeometryError also if labels lie elsewhere than their scan.
        ConfigError
            If the moving scan cannot hold the value `fill`.
        """
        turn = self.reorient
        fixed, moving = (io.read_image(path, reorient=turn) for path in (self.fixed, self.moving))
        fixed_mask = io.read_mask(self.fixed_mask, Grid.of(fixed), reorient=turn) if self.fixed_mask else None
        moving_mask = io.read_mask(self.moving_mask, Grid.of(moving), reorient=turn) if self.moving_mask else None
        initial = io.read_transform(self.initial_transform) if self.initial_transform else None
        moving_labels = io.read_labels(self.moving_labels, reorient=turn) if self.moving_labels else None
        fixed_labels = io.read_labels(self.fixed_labels, reorient=turn) if self.fixed_labels else None
        if self.fill is not None:
            check_fill(self.fill, moving)
        if fixed_labels is not None and not Grid.of(fixed_labels).matches(Grid.of(fixed)):
            raise GeometryError(
                f"{self.fixed_labels}: the labels lie on another grid than the fixed scan; resample them onto it"
            )
        if moving_labels is not None and not sitk.GetArrayFromImage(_nearest(moving_labels, moving)).any():
            raise GeometryError(
                f"{self.moving_labels}: no label lies within the moving scan; give the labels of that scan"
            )
        return Scans(fixed, moving, fixed_mask, moving_mask, fixed_labels, moving_labels, initial)

    def write(
        self, scans: Scans, result: RegistrationResult, more: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """Write what `write_registration` does into `output`, all or nothing.

        Parameters
        ----------
        scans : Scans
            That were registered.
        result : RegistrationResult
        more : mapping, optional
            Also goes into result.json.

        Returns
        -------
        dict
            The content of result.json.

        Raises
        ------
        DataError
            If the folder refuses a file.
        """
        moved_labels = None if scans.moving_labels is None else result.moved(scans.moving_labels, labels=True)
        fill = background(scans.moving) if self.fill is None else self.fill
        report = result.to_dict() | {"fill": fill, "files": to_dict(self)} | dict(more or {})
        if scans.fixed_labels is not None and moved_labels is not None and scans.moving_labels is not None:
            start = _nearest(scans.moving_labels, scans.fixed_labels)
            report["dice"] = {
                "before": dice(scans.fixed_labels, start),
                "after": dice(scans.fixed_labels, moved_labels),
            }
        io.write_registration(
            self.output,
            transform=result.transform,
            moved=result.moved(scans.moving, fill=fill),
            report=report,
            moved_labels=moved_labels,
            inverse=result.inverse,
            ending=self.ending,
        )
        return report


def settings_files(config: RegisterConfig, source: str | Path | None = None) -> list[tuple[str, Path]]:
    """What settings were read from and what they name, as a message calls them, whether it is a file or not."""
    named = {"the settings": source, "the model": config.model, "the network": config.lapirn.model}
    return [(name, Path(file)) for name, file in named.items() if file is not None]


INPUTS = tuple(f.name for f in fields(Job) if f.name not in ("output", "ending", "fill", "reorient"))


@dataclass(frozen=True, eq=False)
class Scans:
    """What the files of a `Job` hold; see there."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    fixed_labels: sitk.Image | None = None
    moving_labels: sitk.Image | None = None
    initial_transform: sitk.Transform | None = None

    def register(self, config: RegisterConfig, **more: Any) -> RegistrationResult:
        """`dsir_metric.register.register` on them; `more` are further arguments of it."""
        return register(
            self.fixed,
            self.moving,
            config,
            fixed_mask=self.fixed_mask,
            moving_mask=self.moving_mask,
            initial_transform=self.initial_transform,
            **more,
        )


def _nearest(labels: sitk.Image, like: sitk.Image) -> sitk.Image:
    """Labels on the grid of another image, as the headers place them."""
    return sitk.Resample(labels, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0, labels.GetPixelID())
