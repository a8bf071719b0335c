"""A mask around the anatomy does no harm: its outline is seen as without a mask, and what it excludes stays out."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent.foreground import foreground, outlined


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(36, 5.0, ("t1", "flair"))


def as_mask(inside: np.ndarray, like: sitk.Image) -> sitk.Image:
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(like)
    return mask


def head(image: sitk.Image) -> np.ndarray:
    return ndimage.binary_fill_holes(sitk.GetArrayFromImage(image) > 0.15 * sitk.GetArrayViewFromImage(image).max())


@pytest.mark.parametrize("widened", [0, 3, None], ids=["tight", "wide", "whole image"])
def test_a_mask_around_the_head_counts_as_no_mask(pair: PhantomPair, widened: int | None) -> None:
    inside = head(pair.fixed)
    if widened is None:
        inside = np.ones_like(inside)
    elif widened:
        inside = ndimage.binary_dilation(inside, iterations=widened)
    found = sitk.GetArrayFromImage(outlined(as_mask(inside, pair.fixed), pair.fixed)) > 0
    expected = sitk.GetArrayFromImage(foreground(pair.fixed, Grid.of(pair.fixed))) > 0
    assert (found != expected).sum() < 0.03 * expected.sum()


def test_tissue_that_a_mask_leaves_out_stays_out(pair: PhantomPair) -> None:
    inside, tissue = head(pair.fixed), head(pair.fixed)
    inside[:, :18] = False
    found = sitk.GetArrayFromImage(outlined(as_mask(inside, pair.fixed), pair.fixed)) > 0
    assert not (found & tissue & ~inside).any()
    assert (found & inside).sum() == inside.sum()


def test_a_mask_inside_the_anatomy_is_left_as_it_is(pair: PhantomPair) -> None:
    inside = ndimage.binary_erosion(head(pair.fixed), iterations=5)
    found = sitk.GetArrayFromImage(outlined(as_mask(inside, pair.fixed), pair.fixed)) > 0
    np.testing.assert_array_equal(found, inside)


def test_a_mask_with_nothing_bright_in_it_is_left_as_it_is(pair: PhantomPair) -> None:
    inside = np.zeros(Grid.of(pair.fixed).shape, bool)
    inside[:2, :2, :2] = True
    mask = as_mask(inside, pair.fixed)
    assert outlined(mask, pair.fixed) is mask


def test_both_components_of_a_mask_stay(pair: PhantomPair) -> None:
    both = sitk.GetArrayFromImage(pair.fixed)
    both[:, :, :4] = both.min()
    both[8:28, 8:28, :3] = both.max()  # apart from the head
    image = sitk.GetImageFromArray(both)
    image.CopyInformation(pair.fixed)
    inside = both > both.min() + 0.15 * (both.max() - both.min())
    found = sitk.GetArrayFromImage(outlined(as_mask(inside, image), image)) > 0
    assert found[10:26, 10:26, :2].all()


@pytest.mark.parametrize("side", ["fixed_mask", "moving_mask"])
def test_registration_within_a_head_mask_is_as_good_as_without(pair: PhantomPair, side: str) -> None:
    config = RegisterConfig(threads=1, stages=("centre", "rigid", "affine", "deformable"))
    image = pair.fixed if side == "fixed_mask" else pair.moving
    plain = pair.error_mm(register(pair.fixed, pair.moving, config).transform)
    masked = pair.error_mm(register(pair.fixed, pair.moving, config, **{side: as_mask(head(image), image)}).transform)
    assert masked < 1.05 * plain
