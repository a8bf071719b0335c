"""Deformable stage by an engine other than ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsir_metric.bridges import ENGINES, channel_pair, run_engine
from dsir_metric.register.pair import aligned
from dsir_metric.register.problem import Deformation, Problem, Report

__all__ = ["deform"]

Matrix = NDArray[np.float64]


def deform(problem: Problem, linear: Matrix, report: Report) -> Deformation:
    """See `Deform`; the remark says how much of the cosine the channels kept that the engine was given."""
    config, level = problem.config, problem.levels[-1]
    channels = config.engine.channels or min(ENGINES[config.backend].channels, level.fixed.channels)
    level = aligned(level, linear)
    pair = channel_pair(level.fixed, level.moving.unit(), level.fixed_mask, level.fixed_mask, channels)
    field = run_engine(config.backend, pair, threads=config.threads, timeout_s=config.engine.timeout_s)
    return Deformation(field.to_transform(), f"{config.backend} on {pair.text}")
