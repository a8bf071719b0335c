"""Registration networks: two representations in, a velocity out, in one pass. LapIRN, and what any such network shares.

Volumes are (batch, channels, z, y, x); a velocity or displacement is (batch, 3, z, y, x), components x, y, z, in voxels
of the grid of the volumes, as in `dsir_metric.torch.warp`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dsir_metric.bounds import Range
from dsir_metric.config import Settings
from dsir_metric.errors import ShapeError
from dsir_metric.torch.warp import exponential, warp

__all__ = ["MULTIPLE", "LapIRN", "LapIRNConfig", "RegistrationNetwork"]

MULTIPLE = 16  # sizes are padded to it inside the networks
_SLOPE = 0.2


@dataclass(frozen=True)
class LapIRNConfig(Settings):
    """Shape of a LapIRN. The defaults are the published ones where these are known.

    Parameters
    ----------
    channels : int
        Of one input volume; 24 for the default representation.
    width : int
        Start channels; the layers have four times as many (28).
    blocks : int
        Pre-activation residual blocks a level.
    levels : int
        Resolutions, each half of the next; at most 4, for the coarsest has one voxel in 16 and halves it once more.
    squarings : int
        Of the integration of the velocity.
    largest_velocity_vox : float
        What the softsign at the end of each level goes up to, in voxels of that level.
    diffeomorphic : bool
        Whether the output is a velocity to be integrated, or the displacement itself.
    """

    channels: Annotated[int, Range(1, 1024)] = 24
    width: Annotated[int, Range(1, 128)] = 7
    blocks: Annotated[int, Range(1, 16)] = 5
    levels: Annotated[int, Range(1, 4)] = 3
    squarings: Annotated[int, Range(1, 16)] = 7
    largest_velocity_vox: Annotated[float, Range(0, 1000, above=True)] = 4.0
    diffeomorphic: bool = True


class RegistrationNetwork(nn.Module, ABC):
    """A network that registers; volumes of any size are padded inside, edge values repeated.

    Parameters
    ----------
    channels : int
        Of one input volume.
    squarings : int
        Of the integration of the velocity; 0 where the output is a displacement.
    """

    levels = 1

    def __init__(self, channels: int, squarings: int) -> None:
        super().__init__()
        self.channels, self.squarings = channels, squarings

    @abstractmethod
    def field(self, fixed: Tensor, moving: Tensor, levels: int, resolution: int) -> Tensor:
        """What `forward` gives, for sizes that are multiples of 16."""

    def stages(self) -> list[nn.Module]:
        """Parts of the network that are trained one after the other, coarse to fine."""
        return [self]

    def forward(
        self, fixed: Tensor, moving: Tensor, levels: int | None = None, resolution: int | None = None
    ) -> Tensor:
        """Velocity, or displacement where `squarings` is 0, at the resolution of the volumes.

        Parameters
        ----------
        fixed, moving : Tensor, shape (batch, channels, z, y, x)
            Descriptors of unit length, on one grid.
        levels : int, optional
            How many levels are used, from the coarsest on; all by default.
        resolution : int, optional
            Number of the level whose resolution the volumes have, at least `levels`; that of the finest by default.
            Lower ones are for training the coarser levels: they need a fraction of the time.

        Returns
        -------
        Tensor, shape (batch, 3, z, y, x)

        Raises
        ------
        ShapeError
            If the volumes differ in shape or have other channels.
        """
        if fixed.shape != moving.shape or fixed.ndim != 5 or fixed.shape[1] != self.channels:
            raise ShapeError(
                f"this network takes two volumes of one shape (batch, {self.channels}, z, y, x); "
                f"{tuple(fixed.shape)} and {tuple(moving.shape)} came: resample them to one grid"
            )
        z, y, x = fixed.shape[-3:]
        out = self.field(_padded(fixed), _padded(moving), levels or self.levels, resolution or self.levels)
        return out[..., :z, :y, :x]

    def displacement(self, field: Tensor) -> Tensor:
        """Displacement of what `forward` gave, voxels."""
        return exponential(field, self.squarings) if self.squarings else field


class LapIRN(RegistrationNetwork):
    """Laplacian pyramid network: each level adds to the velocity that the next coarser one found.

    The paper of DNS states three levels and the integration; the layers inside a level are those of Mok & Chung as far
    as their text tells them: two convolutions, one of stride 2, residual blocks, a transposed convolution, a skip, two
    convolutions and a softsign. What a level decoded is handed to the blocks of the next, which work at its resolution.

    Parameters
    ----------
    config : LapIRNConfig

    References
    ----------
    Mok & Chung, Large deformation diffeomorphic image registration with Laplacian pyramid networks, MICCAI 2020.
    """

    def __init__(self, config: LapIRNConfig) -> None:
        super().__init__(config.channels, config.squarings if config.diffeomorphic else 0)
        self.config, self.levels = config, config.levels
        inputs = [2 * config.channels + (3 if k else 0) for k in range(config.levels)]
        self.pyramid = nn.ModuleList([_Level(n, 4 * config.width, config) for n in inputs])

    def stages(self) -> list[nn.Module]:
        """The levels, coarse to fine."""
        return list(self.pyramid)

    def field(self, fixed: Tensor, moving: Tensor, levels: int, resolution: int) -> Tensor:
        """Velocity of `levels` levels, brought to the resolution of the volumes."""
        coarse = [(fixed, moving)]
        for _ in range(resolution - 1):
            coarse.insert(0, (F.avg_pool3d(coarse[0][0], 2), F.avg_pool3d(coarse[0][1], 2)))
        velocity: Tensor
        velocity, embedding = self.pyramid[0](torch.cat(coarse[0], dim=1), None)
        for k in range(1, resolution):
            velocity = _doubled(velocity)
            if k < levels:
                seen, there = coarse[k]
                moved = warp(there, self.displacement(velocity))
                given = torch.cat([seen, moved, velocity / self.config.largest_velocity_vox], dim=1)
                more, embedding = self.pyramid[k](given, embedding)
                velocity = velocity + more
        return velocity


class _Level(nn.Module):
    """One level: its share of the velocity, and what it decoded, which the next level goes on from."""

    def __init__(self, inputs: int, channels: int, config: LapIRNConfig) -> None:
        super().__init__()
        self.largest = config.largest_velocity_vox
        self.encode = nn.Sequential(
            nn.Conv3d(inputs, channels, 3, padding=1), nn.LeakyReLU(_SLOPE), nn.Conv3d(channels, channels, 3, padding=1)
        )
        self.down = nn.Conv3d(channels, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[_Block(channels) for _ in range(config.blocks)], nn.LeakyReLU(_SLOPE))
        self.up = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.decode = nn.Sequential(nn.Conv3d(2 * channels, channels, 3, padding=1), nn.LeakyReLU(_SLOPE))
        self.out = nn.Conv3d(channels, 3, 3, padding=1, bias=False)
        nn.init.normal_(self.out.weight, std=1e-2 / (27 * channels) ** 0.5)  # a new level begins near the identity

    def forward(self, volumes: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        skip = self.encode(volumes)
        x = self.down(F.leaky_relu(skip, _SLOPE))
        decoded = self.up(self.blocks(x if embedding is None else x + embedding))
        velocity = self.out(self.decode(torch.cat([decoded, skip], dim=1)))
        return self.largest * F.softsign(velocity.to(volumes.dtype)), decoded  # layers may run in half precision


class _Block(nn.Module):
    """Pre-activation residual block (He et al., ECCV 2016), without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def _padded(volume: Tensor) -> Tensor:
    z, y, x = volume.shape[-3:]
    return F.pad(volume, (0, -x % MULTIPLE, 0, -y % MULTIPLE, 0, -z % MULTIPLE), mode="replicate")


def _doubled(field: Tensor) -> Tensor:
    """A field on the grid of half the voxel size, in its voxels."""
    return 2 * F.interpolate(field, scale_factor=2.0, mode="trilinear", align_corners=False)
