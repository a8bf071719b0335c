"""MASR-Net: unit vectors at any size, nothing global, and the receptive field it declares."""

import pytest

torch = pytest.importorskip("torch")
from dsir_metric_train.dns import relations  # noqa: E402
from dsir_metric_train.model import MasrNet, ModelConfig  # noqa: E402


def make(**fields: object) -> MasrNet:
    torch.manual_seed(1)
    return MasrNet(ModelConfig(**fields)).double().eval()


def reach(network: MasrNet, size: int) -> int:
    """Greatest distance along one axis from which an input changes the descriptors, by automatic differentiation."""
    image = torch.rand(1, 1, 8, 8, size, dtype=torch.float64, requires_grad=True)
    furthest = 0
    for middle in range(size // 2, size // 2 + network.config.multiple):  # one of each place within a coarse voxel
        (gradient,) = torch.autograd.grad(network(image)[0, :, 4, 4, middle].sum(), image)
        touched = gradient.abs().amax(dim=(0, 1, 2, 3)).nonzero()
        furthest = max(furthest, int((touched - middle).abs().max()))
    return furthest


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("dilations", [(), (1,), (1, 3)])
def test_receptive_field_is_what_it_says(convolutions: int, dilations: tuple[int, ...]) -> None:
    network = make(widths=(2, 3), features=2, convolutions=convolutions, dilations=dilations)
    assert reach(network, 2 * network.config.receptive_field + 6) == network.config.receptive_field


def test_default_receptive_field_and_size() -> None:
    config = ModelConfig()
    assert (config.multiple, config.receptive_field, config.head_reach) == (8, 48, 4)
    assert 200_000 < sum(p.numel() for p in MasrNet(config).parameters()) < 400_000


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 9, 7), (16, 16, 16), (17, 8, 23)])
def test_any_size_gives_unit_vectors(size: tuple[int, int, int]) -> None:
    descriptors = make(widths=(2, 3, 4))(torch.rand(1, 1, *size, dtype=torch.float64))
    assert descriptors.shape == (1, 24, *size)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(1, *size, dtype=torch.float64))


def test_nothing_global() -> None:
    network = make(widths=(2, 3), features=2)
    halo = network.config.receptive_field + 1  # even: a tile starts at a multiple of 2
    image = torch.rand(1, 1, 8, 8, 48, dtype=torch.float64)
    brighter = image.clone()
    brighter[..., 40:] *= 100
    same = 40 - halo
    torch.testing.assert_close(network(brighter)[..., :same], network(image)[..., :same], rtol=0, atol=1e-14)
    assert not torch.allclose(network(brighter)[..., same + 2 :], network(image)[..., same + 2 :])


@pytest.mark.parametrize("shared", [True, False])
def test_squeeze_is_a_linear_layer_over_the_features(shared: bool) -> None:
    network = make(widths=(2, 3), features=3, shared_squeeze=shared)
    torch.nn.init.normal_(network.squeeze)
    torch.nn.init.normal_(network.squeeze_bias)
    h = torch.randn(1, 3, 4, 5, 6, dtype=torch.float64)
    stacked = torch.stack([*relations(h, 1, 1e-5), *relations(h, 2, 1e-5)], dim=1)  # batch, relation, feature, z, y, x
    weight, bias = network.squeeze.expand(3, 24), network.squeeze_bias.expand(24)
    expected = torch.einsum("brfzyx,fr->brzyx", stacked, weight) + bias.view(1, 24, 1, 1, 1)
    torch.testing.assert_close(network.embed(h), expected)


def test_without_self_similarity_the_head_sees_the_features() -> None:
    network = make(widths=(2, 3), features=3, dilations=())
    h = torch.randn(1, 3, 4, 5, 6, dtype=torch.float64)
    described = network.head(h)
    torch.testing.assert_close(network.describe(h), described / described.norm(dim=1, keepdim=True))
    assert network.squeeze.numel() == network.squeeze_bias.numel() == 0
