"""Deformable stage by an engine other than ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.bridges import ENGINES, ChannelPair, channel_pair, run_engine
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.linear import as_affine
from dsir_metric.register.pair import Level

__all__ = ["aligned", "deform_by_engine"]

Matrix = NDArray[np.float64]


def deform_by_engine(level: Level, linear: Matrix, config: RegisterConfig) -> tuple[sitk.Transform, str]:
    """Displacement u such that x -> linear(x + u(x)) aligns the pair, as `config.backend` finds it.

    Parameters
    ----------
    level : Level
        The finest.
    linear : ndarray, shape (4, 4)
        Fixed to moving, LPS mm, kept as it is.
    config : RegisterConfig

    Returns
    -------
    transform : sitk.DisplacementFieldTransform
    remark : str
        How much of the cosine the channels kept that the engine was given.
    """
    channels = config.engine.channels or min(ENGINES[config.backend].channels, level.fixed.channels)
    pair = aligned(level, linear, channels)
    field = run_engine(config.backend, pair, threads=config.threads, timeout_s=config.engine.timeout_s)
    remark = (
        f"{config.backend} on {channels} channels, which keep {100 * pair.kept:.1f} % of the variance of the cosine"
    )
    return field.to_transform(), remark


def aligned(level: Level, linear: Matrix, channels: int) -> ChannelPair:
    """Both representations on the fixed grid, the moving one linearly aligned, as few channels.

    What maps outside the moving image, or its mask, is left out of the mask of the pair.
    """
    parts = [level.after, as_affine(linear, level.fixed.grid.centre_mm)]
    transform = sitk.CompositeTransform([p for p in parts if p is not None])
    moving = level.moving.resampled(level.fixed.grid, transform, extend=True)
    lengths = np.linalg.norm(moving.values, axis=-1, keepdims=True)
    moving = replace(moving, values=moving.values / np.maximum(lengths, 1e-6))
    inside = level.moving.grid.image() + 1 if level.moving_mask is None else level.moving_mask
    reached = sitk.Resample(inside, level.fixed_mask, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    mask = sitk.Cast(sitk.And(level.fixed_mask != 0, reached != 0), sitk.sitkUInt8)
    return channel_pair(level.fixed, moving, mask, mask, channels)
