"""What every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import SimpleITK as sitk
from hypothesis import settings

from dsir_metric.phantom import PhantomPair, make_pair

if TYPE_CHECKING:
    from dsir_metric_train.model import MasrNet
    from servers import Server


# Tests send these; a run in the background of a shell, or under nohup, starts with some of them ignored.
for _number, _handler in (
    ("SIGINT", signal.default_int_handler),
    ("SIGTERM", signal.SIG_DFL),
    ("SIGHUP", signal.SIG_DFL),
):
    if hasattr(signal, _number):
        signal.signal(getattr(signal, _number), _handler)

settings.register_profile("untimed", deadline=None)  # on a busy machine a deadline finds nothing but that
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def pair() -> PhantomPair:
    """A small T1 and FLAIR phantom, shared by all tests: do not change its images."""
    return make_pair(40, 4.5, ("t1", "flair"))


@pytest.fixture
def volume() -> sitk.Image:
    """A fresh oblique, anisotropic float32 image of 12 x 10 x 8 voxels."""
    image = sitk.GaussianSource(sitk.sitkFloat32, [12, 10, 8], [3, 3, 2], [6, 5, 4], 100.0)
    image.SetSpacing([1.5, 2.0, 3.0])
    image.SetOrigin([-20.0, 7.0, 33.0])
    image.SetDirection(sitk.Euler3DTransform([0, 0, 0], 0.2, -0.1, 0.3).GetMatrix())
    return image


@pytest.fixture(scope="session")
def network() -> MasrNet:
    """A MASR-Net of two narrow levels with random weights."""
    torch = pytest.importorskip("torch")
    from dsir_metric_train.model import MasrNet, ModelConfig

    torch.manual_seed(5)
    return MasrNet(ModelConfig(widths=(4, 8), features=2)).eval()


@pytest.fixture(scope="session")
def model_file(network: MasrNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`network` as a model file; the export takes some seconds."""
    pytest.importorskip("onnxscript")
    from dsir_metric_export import export_network

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    export_network(network, path, recipe={"steps": 0}, data=[{"file": "a.nii.gz", "source": "none", "licence": "CC0"}])
    return path


@pytest.fixture(scope="session")
def half_server() -> Iterator[Server]:
    """`dsir-metric serve` with its defaults, but for its patience: answers in half precision."""
    yield from _server("--patience", 2)


@pytest.fixture(scope="session")
def single_server() -> Iterator[Server]:
    """`dsir-metric serve` in single precision, small, and busy with one request at a time."""
    yield from _server("--fp32", "--max-voxels", 60000, "--queue", 0)


def _server(*options: object) -> Iterator[Server]:
    if find_spec("kserve") is None or find_spec("tritonclient") is None:
        pytest.skip("kserve or tritonclient is not installed")
    from servers import Server

    server = Server(*options)
    yield server
    assert server.alive
    assert server.stop() == 0
