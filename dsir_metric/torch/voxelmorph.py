"""VoxelMorph, MONAI's network, as a second one that registers (needs the package `monai`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError, MissingDependencyError
from dsir_metric.torch.lapirn import RegistrationNetwork

__all__ = ["VoxelMorph", "VoxelMorphConfig"]


Width = Annotated[int, Range(1, 1024)]  # channels


@dataclass(frozen=True)
class VoxelMorphConfig(Settings):
    """Shape of a VoxelMorph; the defaults are MONAI's, which are the published ones.

    Parameters
    ----------
    channels : int
        Of one input volume.
    widths : tuple of int
        Channels down and up at each resolution, in pairs, fine to coarse; at most 4 pairs.
    out_width : int
        Channels the U-net ends with.
    final_widths : tuple of int
        Channels of the convolutions after it.
    squarings : int
        Of the integration of the velocity.
    diffeomorphic : bool
        Whether the output is a velocity to be integrated, or the displacement itself.
    """

    channels: Width = 24
    widths: Annotated[tuple[Width, ...], Length(2, 8)] = (16, 32, 32, 32, 32, 32)
    out_width: Width = 32
    final_widths: Annotated[tuple[Width, ...], Length(0, 16)] = (16, 16)
    squarings: Annotated[int, Range(1, 16)] = 7
    diffeomorphic: bool = True

    def check_together(self) -> None:
        """See that the channels down and up are in pairs."""
        if len(self.widths) % 2:
            raise ConfigError(f"widths of a VoxelMorph must be 1 to 4 pairs, got {list(self.widths)}")


class VoxelMorph(RegistrationNetwork):
    """MONAI's VoxelMorph U-net, with the signature of `LapIRN`; only the integration is that of this package.

    MONAI's own pads with zeros outside. Its displacements have the components z, y, x; weights trained with MONAI keep
    their meaning here.

    Parameters
    ----------
    config : VoxelMorphConfig

    Raises
    ------
    MissingDependencyError
        If MONAI is not installed.

    References
    ----------
    Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, TMI 2019.
    """

    def __init__(self, config: VoxelMorphConfig) -> None:
        super().__init__(config.channels, config.squarings if config.diffeomorphic else 0)
        try:
            from monai.networks.nets.voxelmorph import VoxelMorphUNet
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"VoxelMorph needs {error.name}, which is not installed: pip install 'dsir-metric[train]', or "
                "choose the network lapirn"
            ) from error
        self.config = config
        self.backbone = VoxelMorphUNet(
            spatial_dims=3,
            in_channels=2 * config.channels,
            unet_out_channels=config.out_width,
            channels=config.widths,
            final_conv_channels=config.final_widths,
        )
        weight, bias = list(self.backbone.parameters())[-2:]
        nn.init.normal_(weight, std=1e-5)  # as published: training begins at the identity
        nn.init.zeros_(bias)

    def field(self, fixed: Tensor, moving: Tensor, levels: int, resolution: int) -> Tensor:
        """Velocity, or displacement, from one pass of the U-net."""
        out: Tensor = self.backbone(torch.cat([moving, fixed], dim=1))
        return out.flip(1).to(fixed.dtype)
