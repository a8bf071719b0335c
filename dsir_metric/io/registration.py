"""The files of one registration, written all or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dsir_metric.io.atomic import json_text, write_together
from dsir_metric.io.digest import content_hash
from dsir_metric.io.images import IMAGE_ENDINGS, put_image
from dsir_metric.io.transforms import put_transform

__all__ = ["outputs_are_whole", "registration_files", "write_registration"]

_REPORT = "result.json"
_IMAGES = ("moved", "moved_labels")
_TRANSFORMS = ("transform.h5", "inverse.h5")


def registration_files(folder: str | Path) -> tuple[Path, ...]:
    """All files that `write_registration` may write or remove in a folder; the report, result.json, comes last."""
    images = (f"{name}{ending}" for name in _IMAGES for ending in IMAGE_ENDINGS)
    return tuple(Path(folder) / name for name in (*_TRANSFORMS, *images, _REPORT))


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

    They take the place of all that a registration before wrote there, under whatever ending. Until all are in place
    there is no result.json.

    Parameters
    ----------
    folder : str or Path
        An existing folder, see `prepare_folder`.
    transform : sitk.Transform
        Maps fixed to moving points, LPS mm.
    moved : sitk.Image
        The moving image on the fixed grid.
    report : mapping
        What goes into result.json, beside `outputs`: the SHA-256 of each of the other files, by name.
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
    puts: dict[str, Callable[[Path], None]] = {"transform.h5": partial(put_transform, transform)}
    puts[f"moved{ending}"] = partial(put_image, moved)
    if moved_labels is not None:
        puts[f"moved_labels{ending}"] = partial(put_image, moved_labels)
    if inverse is not None:
        puts["inverse.h5"] = partial(put_transform, inverse)
    hashes: dict[str, str] = {}

    def put(name: str, temporary: Path) -> None:
        puts[name](temporary)
        hashes[name] = content_hash(temporary)

    def put_report(temporary: Path) -> None:
        temporary.write_text(json_text({**report, "outputs": hashes}), encoding="utf-8")

    writers = {folder / name: partial(put, name) for name in puts} | {folder / _REPORT: put_report}
    write_together(writers, [path for path in registration_files(folder) if path not in writers])


def outputs_are_whole(folder: str | Path, report: Mapping[str, Any]) -> bool:
    """Whether the files of a registration, `report` being what its result.json holds, are those that were written.

    Raises
    ------
    DataError, KeyError, TypeError, AttributeError
        If one is missing, or the report is none.
    """
    return all(content_hash(Path(folder) / name) == digest for name, digest in report["outputs"].items())
