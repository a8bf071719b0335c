"""The files of one registration, written all or none."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import SimpleITK as sitk

from dsir_metric.io.atomic import atomic, write_json
from dsir_metric.io.images import write_image
from dsir_metric.io.transforms import write_transform

__all__ = ["write_registration"]


def write_registration(
    folder: str | Path,
    *,
    transform: sitk.Transform,
    moved: sitk.Image,
    report: Mapping[str, object],
    moved_labels: sitk.Image | None = None,
    inverse: sitk.Transform | None = None,
    ending: str = ".nii.gz",
) -> None:
    """Write transform.h5, moved.nii.gz, result.json and, where there are any, moved_labels.nii.gz and inverse.h5.

    Parameters
    ----------
    folder : str or Path
        An existing folder, see `prepare_folder`.
    transform : sitk.Transform
        Maps fixed to moving points, LPS mm.
    moved : sitk.Image
        The moving image on the fixed grid.
    report : mapping
        What goes into result.json.
    moved_labels : sitk.Image, optional
        The moving labels on the fixed grid.
    inverse : sitk.Transform, optional
        Maps moving to fixed points.
    ending : str
        One of `IMAGE_ENDINGS`, of the images.

    Raises
    ------
    DataError
        If one of them cannot be written; then none of them has appeared or changed.
    """
    folder = Path(folder)
    with ExitStack() as whole:  # renames in reverse: the report comes last, so where it is new all is
        write_json(report, whole.enter_context(atomic(folder / "result.json")))
        write_transform(transform, whole.enter_context(atomic(folder / "transform.h5")))
        write_image(moved, whole.enter_context(atomic(folder / f"moved{ending}")))
        if moved_labels is not None:
            write_image(moved_labels, whole.enter_context(atomic(folder / f"moved_labels{ending}")))
        if inverse is not None:
            write_transform(inverse, whole.enter_context(atomic(folder / "inverse.h5")))
