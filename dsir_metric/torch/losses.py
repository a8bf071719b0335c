"""The losses as modules, for training loops that hold them as such. The functions they call have the details."""

from __future__ import annotations

from torch import Tensor, nn

from dsir_metric.torch.mind import mind_ssc_loss
from dsir_metric.torch.regularity import Triple, bending, diffusion, fold_penalty
from dsir_metric.torch.similarity import dns_cosine, local_ncc, nmi

__all__ = [
    "BendingLoss",
    "DNSCosineLoss",
    "DiffusionLoss",
    "FoldLoss",
    "LocalNCCLoss",
    "MINDSSCLoss",
    "NMILoss",
]


class _Loss(nn.Module):
    """A module that shows its settings when it is printed."""

    def extra_repr(self) -> str:
        """The settings."""
        own = ((name, value) for name, value in vars(self).items() if name[0] != "_" and name != "training")
        return ", ".join(f"{name}={value}" for name, value in own)


class DNSCosineLoss(_Loss):
    """`dns_cosine` of descriptors (batch, channels, z, y, x)."""

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negated mean cosine, in [-1, 1]."""
        return dns_cosine(fixed, moved, mask)


class NMILoss(_Loss):
    """`nmi` of images (batch, 1, z, y, x).

    Parameters
    ----------
    bins : int
        Of each image.
    sigma_bins : float
        Standard deviation of the Gaussian windows, in bins.
    range_ : tuple of float
        Intensities from the first to the last bin.
    """

    def __init__(self, bins: int = 32, sigma_bins: float = 0.6, range_: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.bins, self.sigma_bins, self.range_ = bins, sigma_bins, range_

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negated normalised mutual information, in [-2, -1]."""
        return nmi(fixed, moved, mask, self.bins, self.sigma_bins, self.range_)


class MINDSSCLoss(_Loss):
    """`mind_ssc_loss` of images (batch, 1, z, y, x).

    Parameters
    ----------
    radius, dilation : int
        Of the boxes and of the neighbours, voxels.
    """

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared difference of the descriptors, in [0, 1]."""
        return mind_ssc_loss(fixed, moved, mask, self.radius, self.dilation)


class LocalNCCLoss(_Loss):
    """`local_ncc` of images (batch, 1, z, y, x).

    Parameters
    ----------
    window_vox : int
        Edge of the box, voxels, odd.
    """

    def __init__(self, window_vox: int = 9) -> None:
        super().__init__()
        self.window_vox = window_vox

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negated mean squared local correlation, in [-1, 0]."""
        return local_ncc(fixed, moved, mask, self.window_vox)


class DiffusionLoss(_Loss):
    """`diffusion` of a displacement (batch, 3, z, y, x) in voxels.

    Parameters
    ----------
    spacing_mm : tuple of float, optional
        x, y, z of the grid.
    """

    def __init__(self, spacing_mm: Triple | None = None) -> None:
        super().__init__()
        self.spacing_mm = spacing_mm

    def forward(self, displacement: Tensor) -> Tensor:
        """Mean squared norm of the gradient, without a unit."""
        return diffusion(displacement, self.spacing_mm)


class BendingLoss(_Loss):
    """`bending` of a displacement (batch, 3, z, y, x) in voxels.

    Parameters
    ----------
    spacing_mm : tuple of float, optional
        x, y, z of the grid.
    """

    def __init__(self, spacing_mm: Triple | None = None) -> None:
        super().__init__()
        self.spacing_mm = spacing_mm

    def forward(self, displacement: Tensor) -> Tensor:
        """Mean squared norm of the second derivatives, per mm^2 or voxel^2."""
        return bending(displacement, self.spacing_mm)


class FoldLoss(_Loss):
    """`fold_penalty` of a displacement (batch, 3, z, y, x) in voxels.

    Parameters
    ----------
    smallest : float
        Jacobian determinant from which on a voxel costs nothing.
    """

    def __init__(self, smallest: float = 0.0) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, displacement: Tensor) -> Tensor:
        """Mean of what the determinant lacks."""
        return fold_penalty(displacement, self.smallest)
