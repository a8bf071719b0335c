"""A trained registration network to a model file that ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from dsir_metric_train.registration import RegistrationRecipe, read_registration
from torch import Tensor, nn

from dsir_metric.errors import ModelFileError, ParityError
from dsir_metric.io import atomic
from dsir_metric.register.lapirn import FORMAT, RegistrationCard, network_path
from dsir_metric.represent.runtime import open_session
from dsir_metric.represent.weights import weights_hash
from dsir_metric.torch.lapirn import MULTIPLE, RegistrationNetwork
from dsir_metric_export.export import to_onnx

__all__ = ["Registering", "export_registration", "measure_registration_parity", "read_registration_network"]

OPSET = 20  # the first whose GridSample takes volumes
TOLERANCE_VOX = 1e-3
SIZES = ((16, 16, 16), (32, 16, 48))


class Registering(nn.Module):
    """A network up to the displacement, and its inverse where it integrates a velocity.

    Parameters
    ----------
    network : RegistrationNetwork
    """

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return ("displacement", "inverse") if self.network.squarings else ("displacement",)

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, ...]:
        """Displacements (1, 3, z, y, x), voxels, of volumes (1, channels, z, y, x) whose sizes are multiples of 16."""
        field = self.network.field(fixed, moving, self.network.levels, self.network.levels)
        signs = (1, -1) if self.network.squarings else (1,)
        return tuple(self.network.displacement(sign * field) for sign in signs)


def read_registration_network(model: str | Path, recipe: RegistrationRecipe) -> RegistrationNetwork:
    """The network inside a file that `export_registration` made, with its weights, to train it on.

    Parameters
    ----------
    model : str or Path
        Name of a shipped registration network, or a file.
    recipe : RegistrationRecipe
        Its architecture must be that of the file; its `base` is the hash of the weights that are expected, if any are.

    Raises
    ------
    ModelFileError
        If there is no such network, or it has other weights than expected, or another architecture.
    """
    path = network_path(model)
    found = weights_hash(path)
    if recipe.base and recipe.base != found:
        raise ModelFileError(
            f"{path}: has the weights {found[:12]}; {recipe.base[:12]} are expected: give that network"
        )
    session = open_session(path, "cpu", 1)
    card = RegistrationCard.from_metadata(session.get_modelmeta().custom_metadata_map, path)
    network = recipe.make_network(card.channels)
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}
    try:
        state = {name: torch.tensor(constants[f"network.{name}"]) for name in network.state_dict()}
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ModelFileError(
            f"{path}: is a network of another architecture than the recipe's {recipe.network}; give its recipe"
        ) from error
    return network


def export_registration(checkpoint: Path, folder: Path) -> RegistrationCard:
    """Turn a checkpoint of `train_registration` into an ONNX file in `folder`, named as its recipe.

    Parameters
    ----------
    checkpoint : Path
        As `dsir_metric_train.registration.train_registration` leaves it.
    folder : Path
        Where `NAME.onnx` is written, whole or not at all.

    Returns
    -------
    RegistrationCard

    Raises
    ------
    DataError
        If the checkpoint cannot be read or the file cannot be written.
    ModelFileError
        If the checkpoint is not one of this training.
    ParityError
        If torch and ONNX Runtime disagree.
    """
    network, content = read_registration(checkpoint)
    settings = content["hyper_parameters"]
    recipe = settings["recipe"]
    out = Path(folder) / f"{recipe['name']}.onnx"
    registering = Registering(network).eval()
    example = tuple(torch.rand(1, network.channels, 32, 48, 64) for _ in range(2))
    model = to_onnx(registering, example, ("fixed", "moving"), registering.outputs, OPSET, MULTIPLE)
    with atomic(out) as temporary:
        onnx.save(model, temporary)
        card = RegistrationCard(
            format=FORMAT,
            kind="registration",
            name=recipe["name"],
            network=recipe["network"],
            loss=recipe["loss"],
            channels=network.channels,
            spacing_mm=recipe["volumes"]["spacing_mm"],
            multiple=MULTIPLE,
            diffeomorphic=bool(network.squarings),
            representation=settings["representation"],
            steps=settings["steps"],
            seconds=round(settings["seconds"], 1),
            recipe=recipe,
            data=tuple(settings["data"]),
            validation=settings["validation"],
            parity=measure_registration_parity(registering, temporary),
            versions={"torch": str(torch.__version__), "onnx": onnx.__version__},
        )
        onnx.helper.set_model_props(model, card.to_metadata())
        onnx.save(model, temporary)
    return card


def measure_registration_parity(registering: Registering, path: Path) -> dict[str, float]:
    """Largest difference of the displacements of torch and of ONNX Runtime, voxels, by size "z x y x x".

    Raises
    ------
    ParityError
        If it is more than a thousandth of a voxel.
    """
    session = open_session(path, "cpu", 1)
    random, found = np.random.default_rng(0), {}
    for size in SIZES:
        volumes = [random.standard_normal((1, registering.network.channels, *size), np.float32) for _ in range(2)]
        fixed, moving = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in volumes)
        with torch.inference_mode():
            expected = registering(torch.from_numpy(fixed), torch.from_numpy(moving))
        came = session.run(list(registering.outputs), {"fixed": fixed, "moving": moving})
        name = " x ".join(map(str, size))
        pairs = zip(came, expected, strict=True)
        found[name] = max(float(np.abs(one - other.numpy()).max()) for one, other in pairs)
        if not found[name] <= TOLERANCE_VOX:
            raise ParityError(
                f"torch and ONNX Runtime differ by {found[name]:.1e} voxels at size {name}, more than "
                f"{TOLERANCE_VOX:.0e}; look for diverged weights, or try other versions of torch and onnxruntime"
            )
    return found
