"""ANTs: symmetric diffeomorphic registration (SyN) over channels, by antspyx or by antsRegistration."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.bridges.registry import Command
from dsir_metric.errors import RegistrationError

__all__ = ["apply", "read", "run", "write"]

_LINEAR = ("-c", "[200x100x50,1e-6,10]", "-f", "4x2x1", "-s", "2x1x0vox")
_DEFORMABLE = ("-t", "SyN[0.1,6,1]", "-c", "[60x40x15,1e-6,10]", "-f", "4x2x1", "-s", "2x1x0vox")


def write(pair: ChannelPair, folder: Path, *, linear: bool) -> list[Command]:
    """Write each channel as an image of its own; see `Bridge`.

    ANTs brings the gradients of several metrics to one length before it adds them up, so each channel is weighted by
    its share of the variance, which makes the sum that of the squares again.
    """
    metrics: list[str] = []
    for k, (images, share) in enumerate(zip(pair.images(), pair.shares, strict=True)):
        names = [f"{side}_{k:02d}.nii" for side in ("fixed", "moving")]
        for image, name in zip(images, names, strict=True):
            io.put_image(image, folder / name)
        metrics += ["-m", f"MeanSquares[{','.join(names)},{share:.6f},0]"]
    io.put_image(pair.mask, folder / "mask.nii")
    command = ["antsRegistration", "-d", "3", "--float", "1", "-o", "ants_", "-x", "mask.nii"]
    if linear:
        command += ["-r", "[fixed_00.nii,moving_00.nii,0]"]
        for kind in ("Rigid[0.1]", "Affine[0.1]"):
            command += ["-t", kind, *metrics, *_LINEAR]
    return [[*command, *_DEFORMABLE[:2], *metrics, *_DEFORMABLE[2:]]]


def apply(moving: str, fixed: str) -> Command:
    """See `Bridge`."""
    transforms = ["-t", "ants_1Warp.nii.gz", "-t", "ants_0GenericAffine.mat"]
    return ["antsApplyTransforms", "-d", "3", "-i", moving, "-r", fixed, "-o", "moved.nii.gz", *transforms]


def run(command: Command, threads: int | None) -> None:
    """See `Bridge`; threads are those of ITK's environment variable."""
    from ants.internal import get_lib_fn

    if get_lib_fn(command[0])(list(command[1:])) != 0:
        raise RegistrationError(f"{command[0]} ended with an error")


def read(folder: Path) -> sitk.Transform:
    """See `Bridge`: ANTs' warp is an ITK displacement field."""
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "ants_0Warp.nii.gz"), sitk.sitkVectorFloat64))
