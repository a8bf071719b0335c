"""MASR-Net: the network that turns one scan into 24 unit-norm channels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric_train.dns import PAIRS, relations

__all__ = ["MasrNet", "ModelConfig"]


_MOST_WEIGHTS = 500_000_000  # 2 GB


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Shape of a MASR-Net. Where the paper is silent the field says so.

    Parameters
    ----------
    widths : tuple of int
        Channels at resolutions 1, 1/2, 1/4, 1/8. The paper's text is silent.
    convolutions : int
        3^3 convolutions a level, on either side. The paper is silent.
    features : int
        C_h, channels of the feature map the self-similarities are taken of. The paper's text is silent.
    dilations : tuple of int
        Neighbourhood layouts; the paper uses a direct (1) and a dilated one, whose dilation it does not state. Empty:
        no self-similarity, the head is given the feature map itself (an ablation, table 5 of the paper).
    channels : int
        C_d = 24 in the paper.
    slope : float
        Negative slope of LeakyReLU. The paper is silent.
    blur : tuple of int
        Binomial filter of BlurPool (Zhang, ICML 2019). The paper is silent on its length.
    shared_squeeze : bool
        One linear layer C_h -> 1 for all relations (True) or one for each relation. The paper is silent.
    epsilon : float
        Added to sigma^2 of equation 1, in squared units of the features. The paper is silent.
    """

    widths: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], Length(1, 7)] = (8, 16, 32, 64)
    convolutions: Annotated[int, Range(1, 16)] = 1
    features: Annotated[int, Range(1, 1024)] = 4
    dilations: Annotated[tuple[Annotated[int, Range(1, 64)], ...], Length(0, 8)] = (1, 2)
    channels: Annotated[int, Range(1, 1024)] = 24
    slope: Annotated[float, Range(-1, 1)] = 0.01
    blur: Annotated[tuple[Annotated[int, Range(0, 10_000)], ...], Length(1, 15)] = (1, 2, 1)
    shared_squeeze: bool = True
    epsilon: Annotated[float, Range(0, 1, above=True)] = 1e-5

    def check_together(self) -> None:
        """See that the filter has a middle and passes something, and that the weights fit a machine."""
        if len(self.blur) % 2 == 0 or sum(self.blur) == 0:
            raise ConfigError(f"blur must be an odd number of weights, not all 0, got {list(self.blur)}")
        weights = 2 * 27 * self.convolutions * sum(width**2 for width in self.widths)
        if weights > _MOST_WEIGHTS:
            raise ConfigError(
                f"a model must have up to {_MOST_WEIGHTS} weights, got about {weights}; take smaller widths or fewer "
                "convolutions"
            )

    @property
    def multiple(self) -> int:
        """Sizes are padded to a multiple of this inside `forward`."""
        return 1 << (len(self.widths) - 1)

    @property
    def receptive_field(self) -> int:
        """Voxels on one side that can influence an output voxel (an upper bound, exact tiling needs this halo)."""
        levels = len(self.widths)
        encoder = sum(self.convolutions << k for k in range(levels))
        blur = sum(len(self.blur) // 2 << k for k in range(levels - 1))
        upsample = sum(2 << k for k in range(levels - 1))
        decoder = sum(self.convolutions << k for k in range(levels - 1))
        return encoder + blur + upsample + decoder + 1 + self.head_reach

    @property
    def head_reach(self) -> int:
        """The part of `receptive_field` that comes after the feature map: neighbours and two 3^3 convolutions."""
        return max(self.dilations, default=0) + 2

    def to_dict(self) -> dict[str, object]:
        """Plain values, for a checkpoint or a card."""
        return asdict(self)


class BlurPool(nn.Module):
    """Halve the size: a separable binomial filter, then every second voxel (edge values repeated outside)."""

    kernel: Tensor

    def __init__(self, channels: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        one = torch.tensor(taps, dtype=torch.float32)
        cube = torch.einsum("i,j,k->ijk", one, one, one)
        self.register_buffer("kernel", (cube / cube.sum()).expand(channels, 1, -1, -1, -1).clone(), persistent=False)
        self.margin = len(taps) // 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.margin,) * 6, mode="replicate")
        return F.conv3d(x, self.kernel, stride=2, groups=x.shape[1])


class Level(nn.Sequential):
    """`convolutions` times 3^3 convolution and LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        layers: list[nn.Module] = []
        for k in range(config.convolutions):
            layers.append(nn.Conv3d(inputs if k == 0 else outputs, outputs, 3, padding=1))
            layers.append(nn.LeakyReLU(config.slope))
        super().__init__(*layers)


class MasrNet(nn.Module):
    """Modality-agnostic structural representation network (figure 2 and supplement A of the paper).

    A 4-level encoder-decoder makes `features` channels, `relations` takes their neighbourhood self-similarities in each
    layout, a linear layer squeezes the feature axis and two convolutions make the descriptor. There is no normalisation
    layer and nothing global, so that the output at a voxel depends on its receptive field alone.

    Parameters
    ----------
    config : ModelConfig
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ModelConfig()
        widths = c.widths
        self.down = nn.ModuleList([Level(i, o, c) for i, o in zip((1, *widths[:-1]), widths, strict=True)])
        self.pool = nn.ModuleList([BlurPool(w, c.blur) for w in widths[:-1]])
        self.up = nn.ModuleList([Level(widths[k] + widths[k + 1], widths[k], c) for k in range(len(widths) - 1)])
        self.out = nn.Conv3d(widths[0], c.features, 3, padding=1)
        self.count = len(PAIRS) * len(c.dilations)
        columns = min(1, self.count) if c.shared_squeeze else self.count
        self.squeeze = nn.Parameter(torch.full((c.features, columns), 1 / c.features))
        self.squeeze_bias = nn.Parameter(torch.zeros(columns))
        hidden = self.count or c.channels
        self.head = nn.Sequential(
            nn.Conv3d(self.count or c.features, hidden, 3, padding=1),
            nn.LeakyReLU(c.slope),
            nn.Conv3d(hidden, c.channels, 3, padding=1),
        )

    def extract(self, x: Tensor) -> Tensor:
        """Feature map h, (batch, C_h, z, y, x), of images (batch, 1, z, y, x) whose sizes fit `config.multiple`."""
        skips = []
        for k, level in enumerate(self.down):
            x = level(x)
            if k < len(self.pool):
                skips.append(x)
                x = self.pool[k](x)
        for k in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
            x = self.up[k](torch.cat([skips[k], x], dim=1))
        h: Tensor = self.out(x)
        return h

    def embed(self, h: Tensor) -> Tensor:
        """Compact structural embedding h^c, (batch, 24, z, y, x): squeezed self-similarities of the feature map.

        Without `ModelConfig.dilations` it is the feature map.
        """
        if not self.config.dilations:
            return h
        out, index = [], 0
        for dilation in self.config.dilations:
            for relation in relations(h, dilation, self.config.epsilon):
                column = 0 if self.config.shared_squeeze else index
                weight = self.squeeze[:, column].view(1, -1, 1, 1, 1)
                out.append((relation * weight).sum(dim=1) + self.squeeze_bias[column])
                index += 1
        return torch.stack(out, dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Feature map h, (batch, C_h, z, y, x), of images (batch, 1, z, y, x) of any size."""
        z, y, x = image.shape[-3:]
        m = self.config.multiple
        padded = F.pad(image, (0, (-x) % m, 0, (-y) % m, 0, (-z) % m), mode="replicate")
        return self.extract(padded)[..., :z, :y, :x]

    def describe(self, h: Tensor) -> Tensor:
        """Descriptors, (batch, channels, z, y, x), unit length along axis 1, of a feature map."""
        d: Tensor = self.head(self.embed(h)).to(h.dtype)  # the head may run in half precision, lengths may not
        return d * torch.rsqrt((d * d).sum(dim=1, keepdim=True) + 1e-12)

    def forward(self, image: Tensor) -> Tensor:
        """Descriptors of images.

        Parameters
        ----------
        image : Tensor, shape (batch, 1, z, y, x), intensities in [0, 1], any size

        Returns
        -------
        Tensor, shape (batch, channels, z, y, x), unit length along axis 1.
        """
        return self.describe(self.features(image))
