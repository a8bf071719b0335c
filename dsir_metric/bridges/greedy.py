"""greedy: diffeomorphic registration on multi-component images, by picsl-greedy or by the program itself."""

from __future__ import annotations

import shlex
from pathlib import Path

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.bridges.registry import Command

__all__ = ["apply", "read", "run", "write"]

_PAIR = ("-m", "SSD", "-i", "fixed.nii", "moving.nii", "-gm", "mask.nii")
_LINEAR = ("-a", "-dof", "12", "-ia-image-centers", "-n", "100x50x10", "-o", "affine.mat")
_DEFORMABLE = ("-n", "100x100x50", "-s", "4vox", "3vox", "-o", "warp.nii.gz")


def write(pair: ChannelPair, folder: Path, *, linear: bool) -> list[Command]:
    """Write one image of all channels for each side; see `Bridge`."""
    io.put_image(pair.fixed.to_sitk(), folder / "fixed.nii")
    io.put_image(pair.moving.to_sitk(), folder / "moving.nii")
    io.put_image(pair.mask, folder / "mask.nii")
    program = ["greedy", "-d", "3"]
    deform: list[str] = [*program, *_PAIR, *_DEFORMABLE]
    if not linear:
        return [deform]
    return [[*program, *_PAIR, *_LINEAR], [*deform, "-it", "affine.mat"]]


def apply(moving: str, fixed: str) -> Command:
    """See `Bridge`."""
    return ["greedy", "-d", "3", "-rf", fixed, "-rm", moving, "moved.nii.gz", "-r", "warp.nii.gz", "affine.mat"]


def run(command: Command, threads: int | None) -> None:
    """See `Bridge`."""
    from picsl_greedy import Greedy3D

    limit = [] if threads is None else ["-threads", str(threads)]
    Greedy3D().execute(shlex.join([*command[3:], *limit]))  # the package names itself and knows its dimension


def read(folder: Path) -> sitk.Transform:
    """See `Bridge`: greedy's warp is an ITK displacement field."""
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "warp.nii.gz"), sitk.sitkVectorFloat64))
