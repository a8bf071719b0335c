"""Descriptors as tensors: the same bits, and the same memory where that can be."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from dsir_metric.errors import ConfigError, DataError, ModelFileError, ShapeError  # noqa: E402
from dsir_metric.geometry import Grid  # noqa: E402
from dsir_metric.phantom import PhantomPair  # noqa: E402
from dsir_metric.represent import Representation, Representer  # noqa: E402
from dsir_metric.torch.describe import describe, describe_image, network_device  # noqa: E402
from dsir_metric.torch.tensors import as_representation, as_tensor  # noqa: E402


@pytest.fixture(scope="module", params=[None, 16], ids=["whole", "tiles"])
def representer(request: pytest.FixtureRequest) -> Representer:
    return Representer(device="cpu", threads=1, tile=request.param)


@pytest.fixture(scope="module")
def turned(pair: PhantomPair) -> sitk.Image:
    """A small scan of three sizes whose axes run in another order, two of them backwards."""
    return sitk.PermuteAxes(pair.moving, [2, 0, 1])[25:8:-1, 4:34, 30:6:-1]


def test_descriptors_of_a_scan_are_those_of_the_representer(representer: Representer, turned: sitk.Image) -> None:
    expected = representer(turned)
    came = describe_image(representer, turned)
    assert came.is_contiguous()
    assert came.device == network_device(representer) == torch.device("cpu")
    np.testing.assert_array_equal(came.numpy(), expected.values)
    assert np.ptp(expected.values) > 0.5


def test_descriptors_of_a_volume_are_those_of_the_representer(representer: Representer, pair: PhantomPair) -> None:
    image = pair.fixed[6:30, 5:35, 8:26]
    scaled, _, rule = representer.prepare(image)
    volume = torch.from_numpy(scaled).requires_grad_()
    came = describe(representer, volume)
    assert not came.requires_grad
    np.testing.assert_array_equal(came.numpy(), representer(image).values)
    sparse = torch.zeros(*volume.shape[:2], 2 * volume.shape[2])[:, :, ::2]  # a volume that lies apart in memory
    sparse.copy_(volume.detach())
    assert torch.equal(describe(representer, sparse), came)
    assert representer.provenance(rule) == representer(image).provenance


def test_what_cannot_be_described_is_refused(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    representer = Representer(device="cpu", threads=1)
    with pytest.raises(ShapeError, match="z, y, x"):
        describe(representer, torch.zeros(1, 4, 4, 4))
    with pytest.raises(ConfigError, match="float32"):
        describe(representer, torch.zeros(4, 4, 4).double())
    with pytest.raises(ConfigError, match="the network runs on cpu"):
        describe(representer, torch.zeros(4, 4, 4, device="meta"))
    with pytest.raises(DataError, match="nothing lies within"):
        describe_image(representer, pair.fixed, "window:100000,200000")
    with pytest.raises(ModelFileError, match="NaN"):
        describe(representer, torch.full((8, 8, 8), torch.nan))


def test_cuda_is_where_its_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    representer = Representer(device="cpu", threads=1)
    options = {"CUDAExecutionProvider": {"device_id": "1"}, "CPUExecutionProvider": {}}
    monkeypatch.setattr(representer.local.network, "_opened", SimpleNamespace(get_provider_options=lambda: options))
    assert network_device(representer) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="cuda:1"):
        describe(representer, torch.zeros(4, 4, 4))


def random_representation() -> Representation:
    values = np.random.default_rng(0).standard_normal((3, 4, 5, 6), np.float32)
    return Representation(values, Grid((5, 4, 3), (1.0, 2.0, 3.0)), {"model": "m"})


def test_a_representation_and_its_tensor_share_memory() -> None:
    representation = random_representation()
    tensor = as_tensor(representation)
    assert tensor.shape == (3, 4, 5, 6)
    assert tensor.data_ptr() == representation.values.ctypes.data
    back = as_representation(tensor, representation.grid, representation.provenance)
    assert np.shares_memory(back.values, representation.values)
    assert back.provenance == {"model": "m"}
    assert as_representation(tensor, representation.grid).provenance == {}


def test_half_and_read_only_values_become_tensors_of_their_own() -> None:
    representation = random_representation()
    half = as_tensor(representation, half=True)
    assert half.dtype == torch.float16
    back = as_representation(half.requires_grad_(), representation.grid)
    assert back.values.dtype == np.float32
    np.testing.assert_allclose(back.values, representation.values, rtol=1e-3)
    expected = representation.values.copy()
    representation.values.flags.writeable = False
    tensor = as_tensor(representation)
    tensor += 1
    np.testing.assert_array_equal(representation.values, expected)


def test_a_tensor_fits_its_grid() -> None:
    with pytest.raises(ShapeError, match="needs values"):
        as_representation(torch.zeros(3, 4, 6, 6), Grid((5, 4, 3)))
