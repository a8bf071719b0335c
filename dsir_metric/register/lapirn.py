"""Deformable stage by a registration network: one pass in ONNX Runtime, no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.bounds import Range, quoted
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.deformable import fit_freeform
from dsir_metric.register.pair import Level, through
from dsir_metric.register.problem import Deformation, Problem, Report
from dsir_metric.represent import Representation, load_card
from dsir_metric.represent.card import MOST_CHANNELS, card_of
from dsir_metric.represent.runtime import metadata_of, open_session
from dsir_metric.represent.zoo import shipped_models

__all__ = [
    "FORMAT",
    "RegistrationCard",
    "check",
    "check_model",
    "deform",
    "near",
    "network_path",
    "on_grid",
    "shipped_networks",
]

FORMAT = 1
_FOLDER = Path(__file__).parent.parent / "models" / "registration"


@dataclass(frozen=True)
class RegistrationCard(Settings):
    """What a registration network says about itself (ONNX `metadata_props`, one JSON value a field).

    Its graph takes `fixed` and `moving`, (1, channels, z, y, x), unit vectors, and gives `displacement` and, where it
    is a diffeomorphism, `inverse`, (1, 3, z, y, x), components x, y, z, in voxels.

    Parameters
    ----------
    format : int
        Version of this layout.
    kind : str
        "registration".
    name, network, loss : str
        Its name, its architecture, and what it was trained to minimise.
    channels : int
        Of either input.
    spacing_mm : float
        Edge of the voxels it was trained at.
    multiple : int
        What sizes must be multiples of.
    diffeomorphic : bool
        Whether it integrates a velocity.
    representation : str
        SHA-256 of the weights of the model that made the representations it was trained on.
    steps : int
        Optimiser steps.
    seconds : float
        Time they took.
    recipe : mapping
        All settings of the training.
    data : tuple of mapping
        What it was trained on: "file", "source", "licence".
    validation : mapping
        Figures of the last validation.
    parity : mapping
        Largest difference of torch and ONNX Runtime at export, in voxels, by size "z x y x x".
    versions : mapping
        Of torch and onnx at export.
    """

    format: Annotated[int, Range(FORMAT, FORMAT)]
    kind: Literal["registration"]
    name: str
    network: str
    loss: str
    channels: Annotated[int, Range(1, MOST_CHANNELS)]
    spacing_mm: Annotated[float, Range(0.01, 1000)]
    multiple: Annotated[int, Range(1, 1024)]
    diffeomorphic: bool
    representation: str
    steps: Annotated[int, Range(0, 1e12)]
    seconds: Annotated[float, Range(0, 1e12)]
    recipe: Mapping[str, Any]
    data: tuple[Mapping[str, str], ...]
    validation: Mapping[str, float]
    parity: Mapping[str, float]
    versions: Mapping[str, str]

    def to_metadata(self) -> dict[str, str]:
        """Text for every field, as ONNX keeps it."""
        return {name: json.dumps(value, sort_keys=True) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> RegistrationCard:
        """The inverse of `to_metadata`; `path` is named in errors.

        Raises
        ------
        ModelFileError
            If it is none of a registration network.
        """
        try:
            return card_of(cls, metadata)
        except ConfigError as error:
            raise ModelFileError(
                f"{path}: is no registration network ({error}); make one with `dsir-metric train-registration`"
            ) from error


def shipped_networks() -> dict[str, Path]:
    """Files of the registration networks in the package, by name, sorted."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.onnx"))}


def network_path(network: str | Path) -> Path:
    """File of a registration network: a name in the package's `models/registration` folder, or a file.

    Raises
    ------
    ModelFileError
        If it is neither.
    """
    shipped = shipped_networks()
    if str(network) in shipped:
        return shipped[str(network)]
    if not os.path.isfile(network):  # also of a name that is too long for a file
        known = (
            f"one of the names {', '.join(shipped)}" if shipped else "make one with `dsir-metric train-registration`"
        )
        raise ModelFileError(f"there is no registration network {quoted(str(network))}; give an .onnx file or {known}")
    return Path(network)


def check(config: RegisterConfig) -> None:
    """See that there is such a network and that it opens on the device; raises as `network_path` and `open_session`."""
    _open(config)


def check_model(config: RegisterConfig) -> None:
    """See that the network was trained on the representations of `config.model`.

    Raises
    ------
    ModelFileError
        If it was trained on those of another model; the message names a pair that works, where one ships.
    RemoteError
        If the model is on a server that does not answer.
    """
    path, _, network = _open(config)
    card = load_card(config.model)
    _check_representation(network, card.weights_hash, card.channels, str(config.model), path)


def deform(problem: Problem, linear: NDArray[np.float64], report: Report) -> Deformation:
    """Displacement u such that x -> linear(x + u(x)) aligns the pair, as a registration network has it.

    Both representations are brought to the network's voxel size along the fixed axes, the moving one through `linear`.

    Parameters
    ----------
    problem : Problem
        `problem.config.lapirn.model` names the network.
    linear : ndarray, shape (4, 4)
        Fixed to moving, LPS mm, kept as it is.
    report : callable
        Receives how far it has come.

    Returns
    -------
    Deformation
        A displacement field on the network's grid, and its inverse where the network integrates a velocity.

    Raises
    ------
    ModelFileError
        If there is no such network, or it was trained on other representations than these.
    """
    path, session, card = _open(problem.config)
    level = near(problem.levels, card.spacing_mm)
    for name, side in (("fixed", level.fixed), ("moving", level.moving)):
        weights_hash = str(side.provenance.get("model_hash", "unknown"))
        _check_representation(card, weights_hash, side.channels, f"the {name} representation", path)
    grid = level.fixed.grid.resampled(card.spacing_mm).padded(1)  # around the box: the field is the identity outside
    given = {"fixed": on_grid(level.fixed, grid), "moving": on_grid(level.moving, grid, through(level, linear))}
    report(0.2, float(-np.mean(np.sum(given["fixed"].values * given["moving"].values, axis=-1))))
    answer = _run(session, given, card.multiple, path)
    fields = [DisplacementField.from_voxels(field, grid) for field in answer]
    remark = f"{card.name}: {card.network} under {card.loss}, {card.steps} steps in {card.seconds / 60:.0f} minutes"
    if problem.config.lapirn.refine_iterations > 0:
        return _refined(problem, linear, report, fields[0], remark)
    forward, *backward = [field.to_transform() for field in fields]
    return Deformation(forward, remark, backward[0] if backward else None)


def _refined(
    problem: Problem, linear: NDArray[np.float64], report: Report, start: DisplacementField, remark: str
) -> Deformation:
    """The network's displacement, gone on from by the finest lattice of the free-form deformation."""
    config = problem.config.deformable
    finest = replace(config, lattice_mm=config.lattice_mm[-1:], iterations=(problem.config.lapirn.refine_iterations,))
    found = fit_freeform(problem.levels, linear, finest, report, start)
    return replace(found, remark="; ".join(part for part in (f"{remark}, refined", found.remark) if part))


def near(levels: list[Level], spacing_mm: float) -> Level:
    """The coarsest level whose voxels are not larger than `spacing_mm`; the finest if all are larger."""
    return next((level for level in levels if level.spacing_mm <= 1.01 * spacing_mm), levels[-1])


def on_grid(representation: Representation, grid: Grid, transform: sitk.Transform | None = None) -> Representation:
    """Descriptors of unit length on `grid`, edge values outside; `transform` maps its points to those of them."""
    return representation.resampled(grid, transform, extend=True).unit()


def _open(config: RegisterConfig) -> tuple[Path, Any, RegistrationCard]:
    """File, session and card of the network that the settings name."""
    path = network_path(config.lapirn.model)
    session = open_session(path, config.device, config.threads, config.gpu_memory_bytes)
    return path, session, RegistrationCard.from_metadata(metadata_of(session, path), path)


def _check_representation(card: RegistrationCard, weights_hash: str, channels: int, whose: str, path: Path) -> None:
    """Refuse representations of another model than the network was trained on."""
    if weights_hash == card.representation and channels == card.channels:
        return
    raise ModelFileError(
        f"{path}: was trained on representations of the model {card.representation[:12]}, got {whose} of "
        f"{weights_hash[:12]}; {_remedy(card, path)}train a network for this model (dsir-metric train-registration)"
    )


def _remedy(card: RegistrationCard, path: Path) -> str:
    """How to come by the model of a network's card, with "or" behind it; empty where nobody could have it."""
    for name, file in shipped_models().items():
        if load_card(file).weights_hash == card.representation:
            return f"use --model {name}, or "
    return "" if path in shipped_networks().values() else "give the model it was trained on (--model), or "


def _run(session: Any, given: Mapping[str, Representation], multiple: int, path: Path) -> list[NDArray[np.float32]]:
    """Displacements (3, z, y, x) in voxels; volumes are padded to multiples, edge values repeated."""
    z, y, x = given["fixed"].grid.shape
    more = [(0, 0), *((0, -n % multiple) for n in (z, y, x))]
    volumes = {name: np.pad(np.moveaxis(r.values, -1, 0), more, mode="edge")[None] for name, r in given.items()}
    answer: list[NDArray[np.float32]] = [field[0, :, :z, :y, :x] for field in session.run(None, volumes)]
    if not all(np.isfinite(field).all() for field in answer):
        raise ModelFileError(f"{path}: gave displacements that are not finite; train the network again")
    return answer
