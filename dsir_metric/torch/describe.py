"""Descriptors where they are wanted: the network reads and writes the memory of tensors, on the CPU or the GPU.

ONNX Runtime is given torch's own pointers, so that what CUDA computed never passes through the host.
"""

from __future__ import annotations

import SimpleITK as sitk
import torch
from torch import Tensor

from dsir_metric.errors import ConfigError, ShapeError
from dsir_metric.represent import Representer
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.network import Memory
from dsir_metric.represent.orientation import canonical_axes
from dsir_metric.represent.tiled import TiledNetwork

__all__ = ["describe", "describe_image", "network_device"]


def network_device(representer: Representer) -> torch.device:
    """Where the network of `representer` runs, and `describe` wants its volumes; the CPU where a server has it."""
    gpu = None if representer.local is None else representer.local.network.gpu
    return torch.device("cpu") if gpu is None else torch.device("cuda", gpu)


def describe(representer: Representer, volume: Tensor) -> Tensor:
    """Descriptors of a volume of intensities, on the device of both.

    Parameters
    ----------
    representer : Representer
    volume : Tensor of float32, shape (z, y, x)
        Intensities in [0, 1], axes nearest to S, P, L (as `Representer.prepare` makes them), on
        `network_device(representer)`.

    Returns
    -------
    Tensor of float32, shape (z, y, x, channels)
        Unit vectors; on the CPU those of `representer`, bit for bit. No derivative reaches `volume`.

    Raises
    ------
    ShapeError
        If `volume` is not three-dimensional or has no voxel.
    ConfigError
        If it is not float32, or not where the network runs.
    ModelFileError
        If the network answers with NaN or infinity.
    """
    device = network_device(representer)
    if volume.ndim != 3 or volume.numel() == 0:
        raise ShapeError(f"volume has shape {tuple(volume.shape)}; (z, y, x) with one voxel or more is expected")
    if volume.dtype != torch.float32 or volume.device != device:
        raise ConfigError(
            f"volume is {volume.dtype} on {volume.device}; the network runs on {device} and takes float32 there: "
            "move the volume, or open the Representer with another device"
        )
    local = representer.local
    if local is None:
        return torch.from_numpy(representer.describe(volume.detach().numpy()))
    out = torch.empty(*volume.shape, local.card.channels, device=device)
    _describe(local, _features(local, volume.detach()), out, ())
    return out


def describe_image(representer: Representer, image: sitk.Image, intensity: str | IntensityRule = "auto") -> Tensor:
    """Descriptors of a scan on its own grid: `representer(image, intensity).values`, left where they were computed.

    Parameters
    ----------
    representer : Representer
    image : sitk.Image
        Scalar, 3-D, any size, spacing and orientation.
    intensity : str or IntensityRule
        As for `Representer.__call__`, whose errors this raises too.

    Returns
    -------
    Tensor of float32, shape (z, y, x, channels)
        On `network_device(representer)`, contiguous.
    """
    local = representer.local
    if local is None:
        return torch.from_numpy(representer(image, intensity).values)
    scaled, grid, _ = representer.prepare(image, intensity)
    device = network_device(representer)
    order, flips = canonical_axes(grid)
    out = torch.empty(*grid.shape, local.card.channels, device=device)
    _describe(local, _features(local, torch.from_numpy(scaled).to(device)), out.permute(*order, 3), flips)
    return out


def _features(local: TiledNetwork, volume: Tensor) -> Tensor:
    """Feature map (features, z, y, x) of a volume (z, y, x) in [0, 1]."""
    count = local.card.features
    features = torch.empty(count, *volume.shape, device=volume.device)
    for tile in local.plan(_shape(volume)).image_tiles:
        source = volume[tile.source].contiguous()
        piece = torch.empty(count, *source.shape, device=volume.device)
        _wait(volume.device)
        local.network.features_into(_memory(source[None, None]), _memory(piece[None]))
        features[:, *tile.core] = piece[:, *tile.inner]
    return features


def _describe(local: TiledNetwork, features: Tensor, out: Tensor, flips: tuple[int, ...]) -> None:
    """Descriptors of a whole feature map, written into `out` (z, y, x, channels), whose axes `flips` run backwards."""
    shape = _shape(features[0])
    for tile in local.plan(shape).feature_tiles:
        source = features[:, *tile.source].contiguous()
        piece = torch.empty(*source.shape[1:], out.shape[3], device=out.device)
        _wait(out.device)
        local.network.descriptors_into(_memory(source[None]), _memory(piece[None]))
        inner = piece[tile.inner]
        if not torch.isfinite(torch.linalg.vector_norm(inner)):
            raise local.diverged()
        target = tuple(_mirrored(s, shape[k]) if k in flips else s for k, s in enumerate(tile.core))
        out[target] = inner.flip(flips) if flips else inner


def _mirrored(part: slice, size: int) -> slice:
    return slice(size - part.stop, size - part.start)


def _memory(tensor: Tensor) -> Memory:
    return Memory(tensor.data_ptr(), tuple(tensor.shape), tensor.device.type, tensor.device.index or 0)


def _wait(device: torch.device) -> None:
    """Let torch finish: ONNX Runtime works on a stream of its own, and would not wait for it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _shape(volume: Tensor) -> tuple[int, int, int]:
    z, y, x = volume.shape
    return z, y, x
