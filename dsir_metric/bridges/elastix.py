"""elastix: B-spline registration over channels, by itk-elastix or by the program itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.bridges.registry import Command

__all__ = ["apply", "parameters", "read", "run", "write"]

_PER_IMAGE = {
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "ImageSampler": "RandomCoordinate",
    "Interpolator": "LinearInterpolator",
}
_COMMON: dict[str, list[object]] = {
    "Registration": ["MultiMetricMultiResolutionRegistration"],
    "UseMultiThreadingForMetrics": ["false"],  # with it elastix crashes as soon as there are two metrics
    "FixedImageDimension": [3],
    "MovingImageDimension": [3],
    "FixedInternalImagePixelType": ["float"],
    "MovingInternalImagePixelType": ["float"],
    "ResampleInterpolator": ["FinalBSplineInterpolator"],
    "FinalBSplineInterpolationOrder": [1],
    "Resampler": ["DefaultResampler"],
    "UseDirectionCosines": ["true"],
    "HowToCombineTransforms": ["Compose"],
    "MaximumNumberOfSamplingAttempts": [8],
    "RequiredRatioOfValidSamples": [0.05],
    "ErodeMask": ["false"],
    "RandomSeed": [121212],
    "WriteResultImage": ["false"],
    "WriteTransformParametersEachResolution": ["false"],
    "ITKTransformOutputFileNameExtension": ["tfm"],
}
_LINEAR: dict[str, list[object]] = {
    "Transform": ["AffineTransform"],
    "AutomaticScalesEstimation": ["true"],
    "AutomaticTransformInitialization": ["true"],
    "AutomaticTransformInitializationMethod": ["GeometricalCenter"],
    "NumberOfResolutions": [3],
    "Optimizer": ["AdaptiveStochasticGradientDescent"],
    "AutomaticParameterEstimation": ["true"],
    "ASGDParameterEstimationMethod": ["DisplacementDistribution"],
    "NewSamplesEveryIteration": ["true"],
    "MaximumNumberOfIterations": [250],
    "NumberOfSpatialSamples": [2000],
}
_DEFORMABLE: dict[str, list[object]] = {
    "Transform": ["BSplineTransform"],
    "NumberOfResolutions": [3],
    "FinalGridSpacingInPhysicalUnits": [10.0],
    "Optimizer": ["QuasiNewtonLBFGS"],  # stochastic descent diverges under the bending energy
    "GradientMagnitudeTolerance": [1e-10],  # sums of squares of unit vectors have small derivatives
    "LineSearchMaximumNumberOfIterations": [10],
    "StopIfWolfeNotSatisfied": ["false"],
    "NewSamplesEveryIteration": ["false"],
    "MaximumNumberOfIterations": [25],
    "NumberOfSpatialSamples": [10000],
}
_BENDING_MM2 = 30.0  # weight of the bending energy, per mm^2, against the sum of squares; tuned on pairs of their own


def parameters(stage: Mapping[str, list[object]], channels: int) -> str:
    """Text of an elastix parameter file for `channels` pairs of images and one more, which the bending energy needs."""
    table: dict[str, list[object]] = {**_COMMON, **stage}
    table |= {key: [value] * (channels + 1) for key, value in _PER_IMAGE.items()}
    bends = stage["Transform"] == ["BSplineTransform"]  # nothing else can: there the last metric counts nothing
    last = "TransformBendingEnergyPenalty" if bends else "AdvancedMeanSquares"
    table["Metric"] = [*["AdvancedMeanSquares"] * channels, last]
    table |= {f"Metric{k}Weight": [1.0] for k in range(channels)}
    table[f"Metric{channels}Weight"] = [_BENDING_MM2 if bends else 0.0]
    return "".join(f"({key} {' '.join(map(_quoted, values))})\n" for key, values in table.items())


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def write(pair: ChannelPair, folder: Path, *, linear: bool) -> list[Command]:
    """Write each channel as an image of its own, and the parameter files; see `Bridge`."""
    command = ["elastix"]
    for k, images in enumerate(pair.images()):
        for side, image in zip(("fixed", "moving"), images, strict=True):
            io.put_image(image, folder / f"{side}_{k:02d}.nii")
            command += [f"-{side[0]}{k}", f"{side}_{k:02d}.nii"]
    channels = pair.fixed.channels
    command += [f"-f{channels}", "fixed_00.nii", f"-m{channels}", "moving_00.nii"]
    io.put_image(pair.mask, folder / "mask.nii")
    command += ["-fMask", "mask.nii"]
    stages = {"affine.txt": _LINEAR, "deformable.txt": _DEFORMABLE} if linear else {"deformable.txt": _DEFORMABLE}
    for name, stage in stages.items():
        (folder / name).write_text(parameters(stage, channels))
        command += ["-p", name]
    return [[*command, "-out", "."]]


def apply(moving: str, fixed: str) -> Command:
    """See `Bridge`; transformix takes the grid of the channels and the name result.nii itself."""
    return ["transformix", "-in", moving, "-tp", "TransformParameters.1.txt", "-out", "."]


def run(command: Command, threads: int | None) -> None:
    """See `Bridge`."""
    import itk

    options = list(zip(command[1::2], command[2::2], strict=True))
    maps = itk.ParameterObject.New()
    images: dict[str, list[Any]] = {"-f": [], "-m": []}
    for key, value in options:
        if key == "-p":
            maps.AddParameterFile(value)
        elif key[:2] in images and key[2:].isdigit():
            images[key[:2]].append(itk.imread(value, itk.F))
    method = itk.ElastixRegistrationMethod.New(images["-f"][0], images["-m"][0])
    for fixed, moving in zip(images["-f"][1:], images["-m"][1:], strict=True):
        method.AddFixedImage(fixed)
        method.AddMovingImage(moving)
    method.SetFixedMask(itk.imread(dict(options)["-fMask"], itk.UC))
    method.SetParameterObject(maps)
    method.SetOutputDirectory(dict(options)["-out"])
    method.SetLogToConsole(True)
    if threads is not None:
        method.SetNumberOfThreads(threads)
    method.UpdateLargestPossibleRegion()


def read(folder: Path) -> sitk.Transform:
    """See `Bridge`: the B-spline that elastix wrote in ITK's format."""
    transform: sitk.Transform = sitk.ReadTransform(str(folder / "TransformParameters.0.tfm"))
    return transform
