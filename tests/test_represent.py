"""One scan to its representation: exact tiles, blind to how the header orders the axes, bad input refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from dsir_metric.errors import ConfigError, DataError, GeometryError, ModelFileError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.represent import Representation, Representer
from dsir_metric.represent.orientation import canonical_grid, canonical_view
from dsir_metric.represent.plan import WORKING_BYTES
from dsir_metric.represent.tiling import choose_core, cropped, tiles

SIZES = st.tuples(*[st.integers(1, 40)] * 3)


@pytest.fixture(scope="session")
def representer(model_file: Path) -> Representer:
    return Representer(model_file, device="cpu", threads=1)


def scan(size: tuple[int, int, int], seed: int = 0) -> sitk.Image:
    """Blocks and noise, size x, y, z."""
    random = np.random.default_rng(seed)
    coarse = random.random([n // 6 + 1 for n in reversed(size)])
    blocks = np.kron(coarse, np.ones((6, 6, 6)))[: size[2], : size[1], : size[0]]
    image = sitk.GetImageFromArray((1000 * blocks + 20 * random.standard_normal(blocks.shape)).astype(np.float32))
    image.SetSpacing([1.0, 1.5, 2.0])
    image.SetOrigin([5.0, -8.0, 13.0])
    return image


@given(shape=SIZES, core=SIZES, halo=st.integers(0, 9))
def test_cores_cover_the_volume_once(shape, core, halo) -> None:
    times = np.zeros(shape, int)
    numbers = np.arange(times.size).reshape(shape)
    for tile in tiles(shape, core, halo):
        times[tile.core] += 1
        np.testing.assert_array_equal(numbers[tile.source][tile.inner], numbers[tile.core])
        for source, inside, n in zip(tile.source, tile.core, shape, strict=True):
            assert source.start == max(inside.start - halo, 0)
            assert source.stop == min(inside.stop + halo, n)
    assert (times == 1).all()


@given(shape=SIZES, core=SIZES, halo=st.integers(0, 9), data=st.data())
def test_cores_of_a_crop_cover_it_once(shape, core, halo, data) -> None:
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    crop = tuple(slice(*end) for end in ends)
    numbers = np.arange(np.prod(shape)).reshape(shape)
    wanted = numbers[crop]
    times = np.zeros(wanted.shape, int)
    for tile in cropped(tiles(shape, core, halo), crop):  # type: ignore[arg-type]
        times[tile.core] += 1
        np.testing.assert_array_equal(numbers[tile.source][tile.inner], wanted[tile.core])
    assert (times == 1).all()


@given(shape=SIZES, halo=st.integers(0, 3), most=st.integers(3000, 60000))
def test_chosen_core_keeps_the_bound(shape, halo, most) -> None:
    core = choose_core(shape, 8 * halo, 8, most)
    assert all(c % 8 == 0 for c in core)
    largest = max(
        np.prod([s.stop - s.start for s in tile.source])
        for tile in tiles(shape, core, 8 * halo)  # type: ignore[call-overload]
    )
    assert largest <= most or max(core) == 8


def test_volume_that_fits_is_not_cut() -> None:
    assert choose_core((20, 30, 40), 48, 8, 24_000) == (24, 32, 40)
    assert choose_core((192, 160, 192), 48, 8, WORKING_BYTES // 256) == (192, 160, 192)


@pytest.mark.parametrize("size", [(2, 2, 2), (7, 12, 5), (33, 18, 25)])
def test_any_size_on_its_own_grid(representer: Representer, size: tuple[int, int, int]) -> None:
    image = scan(size)
    dsir = representer(image)
    assert isinstance(dsir, Representation)
    assert dsir.values.dtype == np.float32
    assert dsir.values.flags.c_contiguous
    assert dsir.grid == Grid.of(image)
    assert dsir.values.shape == (*reversed(size), 24)
    np.testing.assert_allclose(np.linalg.norm(dsir.values, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("tile", [8, 15, 22])
def test_tiles_give_the_bits_of_the_whole(representer: Representer, model_file: Path, tile: int) -> None:
    image = scan((37, 29, 50))
    whole = representer(image)
    pieces = Representer(model_file, device="cpu", threads=1, tile=tile)(image)
    np.testing.assert_array_equal(pieces.values, whole.values)


def test_a_halo_too_small_would_show(model_file: Path) -> None:
    image = scan((37, 29, 50))
    representer = Representer(model_file, device="cpu", threads=1, tile=16)
    whole = representer(image).values
    object.__setattr__(representer.card, "halo", 2)
    assert not np.array_equal(representer(image).values, whole)


def test_threads_give_the_same_bits(representer: Representer, model_file: Path) -> None:
    image = scan((37, 29, 50))
    np.testing.assert_array_equal(Representer(model_file, "cpu", threads=2)(image).values, representer(image).values)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_order_and_sign_of_the_axes_do_not_matter(representer: Representer, order: tuple[int, int, int]) -> None:
    image = scan((13, 18, 11))
    image.SetDirection(sitk.Euler3DTransform([0, 0, 0], 0.2, -0.1, 0.3).GetMatrix())
    expected = representer(image).to_sitk()
    for flips in product([False, True], repeat=3):
        turned = sitk.Flip(sitk.PermuteAxes(image, order), flips)
        came = representer(turned).to_sitk()
        assert Grid.of(came) == Grid.of(turned)
        back = sitk.PermuteAxes(sitk.Flip(came, flips), [order.index(k) for k in range(3)])
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(expected))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_crop_is_that_of_the_whole(representer: Representer, order: tuple[int, int, int]) -> None:
    """However the axes run, the descriptors of a part are those that it has in the whole scan."""
    image = sitk.Flip(sitk.PermuteAxes(scan((26, 30, 22)), order), [True, False, True])
    whole, crop = representer(image), (slice(3, 15), slice(8, 21), slice(0, 17))
    part = representer(image, crop=crop)
    assert part.grid.matches(whole.grid.cropped(crop))
    np.testing.assert_allclose(part.values, whole.values[crop], atol=1e-6)


def test_canonical_axes_lie_along_lps(volume: sitk.Image) -> None:
    turned = sitk.Flip(sitk.PermuteAxes(volume, [2, 0, 1]), [True, False, True])
    grid = canonical_grid(Grid.of(turned))
    assert grid.matches(Grid.of(volume))
    view = canonical_view(sitk.GetArrayViewFromImage(turned), Grid.of(turned))
    np.testing.assert_array_equal(view, sitk.GetArrayViewFromImage(volume))
    assert np.shares_memory(view, sitk.GetArrayViewFromImage(turned))


def test_provenance_says_what_made_the_values(representer: Representer) -> None:
    image = scan((9, 9, 9))
    found = representer(image).provenance
    assert found["model"] == "tiny"
    assert found["model_hash"] == representer.model_hash
    assert found["provider"] == "CPUExecutionProvider"
    assert (found["intensity"], found["intensity_detected"]) == ("mr", True)
    chosen = representer(image, "ct:-100,300").provenance
    assert (chosen["intensity"], chosen["intensity_low"], chosen["intensity_high"]) == ("ct", -100.0, 300.0)
    assert chosen["intensity_detected"] is False


def test_scale_of_arbitrary_units_does_not_matter(representer: Representer) -> None:
    image = scan((12, 12, 12))
    other = image * 4.0  # a power of two: the same bits
    np.testing.assert_array_equal(representer(other).values, representer(image).values)


def test_integer_images_are_taken(representer: Representer) -> None:
    whole_numbers = sitk.Cast(scan((9, 8, 7)), sitk.sitkInt16)
    as_float = representer(sitk.Cast(whole_numbers, sitk.sitkFloat64))
    np.testing.assert_array_equal(representer(whole_numbers).values, as_float.values)


def test_component_image_and_back(representer: Representer) -> None:
    dsir = representer(scan((9, 8, 7)))
    image = dsir.to_sitk()
    assert image.GetNumberOfComponentsPerPixel() == 24
    again = Representation.from_sitk(image)
    assert again.grid == dsir.grid
    np.testing.assert_array_equal(again.values, dsir.values)


def broken(value: float) -> sitk.Image:
    image = scan((9, 8, 7))
    image[3, 3, 3] = value
    return image


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (broken(np.nan), DataError),
        (broken(np.inf), DataError),
        (sitk.Image([8, 8, 8], sitk.sitkFloat32), DataError),
        (sitk.Image([8, 8], sitk.sitkFloat32), DataError),  # a slice without contrast
        (sitk.Image([8, 1], sitk.sitkFloat32), ShapeError),
        (sitk.Image([8, 8, 8, 3], sitk.sitkFloat32), ShapeError),
        (sitk.Image([8, 8, 8], sitk.sitkVectorFloat32, 3), ShapeError),
    ],
)
def test_bad_image(representer: Representer, image: sitk.Image, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^image: "):
        representer(image)


def test_unknown_intensity(representer: Representer) -> None:
    with pytest.raises(ConfigError, match="intensity 'pet'"):
        representer(scan((9, 8, 7)), "pet")


def test_window_beside_the_intensities(representer: Representer) -> None:
    with pytest.raises(DataError, match="nothing lies within the intensities 5000 to 6000"):
        representer(scan((9, 8, 7)), "window:5000,6000")


def test_network_that_diverged(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    representer = Representer(model_file, device="cpu")

    def diverged(features: np.ndarray) -> np.ndarray:
        return np.full((*features.shape[1:], 24), np.nan, np.float32)

    monkeypatch.setattr(representer.local.network, "descriptors", diverged)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        representer(scan((9, 8, 7)))


def test_representation_must_fit_its_grid() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 4, 5, 24\) came|came"):
        Representation(np.zeros((3, 4, 5, 24), np.float32), Grid((3, 4, 5)))
    with pytest.raises(ShapeError, match="several components"):
        Representation.from_sitk(sitk.Image([4, 4, 4], sitk.sitkFloat32))


def test_mixed_channels_are_a_product_of_unit_length() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    values[0, 0, 0] = 0
    mixture = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    plain = Representation(values, Grid((5, 4, 3)), {"made": "here"}, mixture)
    mixed = plain.mixed()
    wanted = np.einsum("ij,zyxj->zyxi", mixture, values)
    lengths = np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert mixed.values == pytest.approx(wanted / np.where(lengths > 0, lengths, 1), abs=1e-5)
    assert (mixed.grid, dict(mixed.provenance), mixed.mixture) == (plain.grid, {"made": "here"}, None)
    assert mixed.mixed() is mixed  # once is enough
    turned = replace(plain, values=np.ascontiguousarray(values.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0))
    assert turned.mixed().values == pytest.approx(mixed.values, abs=1e-6)
    for kept in (plain.unit(), plain.smoothed(2.0), plain.resampled(Grid((5, 4, 3)))):
        assert kept.mixture is mixture
    with pytest.raises(ShapeError, match=r"a mixture of 6 channels is square; \(6, 5\) came"):
        replace(plain, mixture=mixture[:, :5])


def test_smoothed_keeps_the_mean_and_follows_the_spacing() -> None:
    values = np.zeros((21, 21, 21, 2), np.float32)
    values[10, 10, 10] = 1
    smooth = Representation(values, Grid((21, 21, 21), (1.0, 2.0, 4.0))).smoothed(2.0)
    np.testing.assert_allclose(smooth.values.sum(axis=(0, 1, 2)), 1, rtol=1e-5)
    spread = smooth.values[..., 0]
    along = [spread.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in (2, 1, 0)]  # x, y, z
    offsets = np.arange(21) - 10
    widths_mm = [np.sqrt((profile * offsets**2).sum()) * s for profile, s in zip(along, (1, 2, 4), strict=True)]
    np.testing.assert_allclose(widths_mm[:2], 2.0, rtol=0.05)
    assert Representation(values, Grid((21, 21, 21))).smoothed(0).values is values


def test_resampled_lands_at_the_same_place(representer: Representer) -> None:
    dsir = representer(scan((12, 11, 10)))
    grid = Grid((3, 3, 3), dsir.grid.spacing_mm, tuple(dsir.grid.to_physical([4, 5, 6])))  # type: ignore[arg-type]
    part = dsir.resampled(grid)
    np.testing.assert_allclose(part.values, dsir.values[6:9, 5:8, 4:7], atol=1e-6)


@pytest.mark.parametrize("extend", [False, True])
def test_resampled_reads_where_the_transform_leads(extend: bool) -> None:
    grid = Grid((6, 5, 4), (2.0, 1.0, 3.0))
    dsir = Representation(np.random.default_rng(2).random((4, 5, 6, 3)).astype(np.float32), grid)
    moved = dsir.resampled(grid, sitk.TranslationTransform(3, (2.0, -1.0, 0.0)), extend=extend).values
    np.testing.assert_allclose(moved[:, 1:, :-1], dsir.values[:, :-1, 1:], atol=1e-6)
    beyond = dsir.values[:, :-1, -1] if extend else 0.0
    np.testing.assert_allclose(moved[:, 1:, -1], np.broadcast_to(beyond, moved[:, 1:, -1].shape), atol=1e-6)


def test_zero_spacing_is_refused() -> None:
    with pytest.raises(GeometryError, match="spacing"):
        Grid((4, 4, 4), (1.0, 0.0, 1.0))
