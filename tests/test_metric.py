"""The cosine metric against SimpleITK's own resampling, and against its own promises."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.errors import ConfigError, RegistrationError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent.representation import Representation
from dsir_metric.threads import at_most

CHANNELS = 24
TURN = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)  # an orthonormal matrix
FIXED = Grid((13, 12, 11), (1.1, 0.9, 1.3), (-7.0, 3.0, 12.0), TURN)
MOVING = Grid((20, 21, 19), (1.0, 1.2, 1.1), tuple(FIXED.centre_mm - [10.0, 12.0, 10.0]))


def representation(grid: Grid, seed: int) -> Representation:
    noise = np.random.default_rng(seed).standard_normal((*grid.shape, CHANNELS))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 2, 0))
    values = smooth / np.linalg.norm(smooth, axis=-1, keepdims=True)
    return Representation(values.astype(np.float32), grid)


@pytest.fixture(scope="module")
def images() -> tuple[Representation, Representation]:
    return representation(FIXED, 1), representation(MOVING, 2)


def linear(cls: type, **moves: object) -> sitk.Transform:
    """A transform a little off the identity, about a centre where it has one."""
    flat = cls in (sitk.TranslationTransform, sitk.ScaleTransform, sitk.AffineTransform)
    transform = cls(3) if flat else cls()
    if hasattr(transform, "SetCenter"):
        transform.SetCenter(FIXED.centre_mm.tolist())
    start = np.array(transform.GetParameters())
    transform.SetParameters((start + np.random.default_rng(3).uniform(-0.06, 0.06, len(start))).tolist())
    for name, value in moves.items():
        getattr(transform, name)(value)
    return transform


def bspline(order: int = 3, domain: Grid = FIXED) -> sitk.Transform:
    transform = sitk.BSplineTransformInitializer(domain.image(), [3, 4, 2], order)
    count = transform.GetNumberOfParameters()
    transform.SetParameters(np.random.default_rng(4).normal(0, 0.5, count).tolist())
    return transform


def displacement(grid: Grid = FIXED) -> sitk.Transform:
    noise = np.random.default_rng(5).standard_normal((*grid.shape, 3))
    field = 5 * ndimage.gaussian_filter(noise, (2, 2, 2, 0))
    return sitk.DisplacementFieldTransform(grid.stamp(sitk.GetImageFromArray(field, isVector=True)))


def composite(*transforms: sitk.Transform) -> sitk.Transform:
    return sitk.CompositeTransform(list(transforms))


def half_turn() -> sitk.Transform:
    """A versor close to 180 degrees, where its fourth component vanishes."""
    rotation = sitk.VersorRigid3DTransform()
    rotation.SetCenter(FIXED.centre_mm.tolist())
    rotation.SetRotation((0.2, 0.1, 0.97), np.radians(178))
    return rotation


LINEAR = {
    cls.__name__: (lambda cls=cls: linear(cls))
    for cls in (
        sitk.TranslationTransform,
        sitk.Euler3DTransform,
        sitk.VersorTransform,
        sitk.VersorRigid3DTransform,
        sitk.Similarity3DTransform,
        sitk.ScaleTransform,
        sitk.ScaleVersor3DTransform,
        sitk.ScaleSkewVersor3DTransform,
        sitk.ComposeScaleSkewVersor3DTransform,
        sitk.AffineTransform,
    )
} | {
    "Euler ZYX": lambda: linear(sitk.Euler3DTransform, SetComputeZYX=True),
    "versor at 178 degrees": half_turn,
    "wrapped affine": lambda: sitk.Transform(linear(sitk.AffineTransform)),
    "wrapped compose-scale-skew": lambda: sitk.Transform(linear(sitk.ComposeScaleSkewVersor3DTransform)),
}
LATTICE = {f"B-spline of order {order}": (lambda order=order: bspline(order)) for order in (1, 2, 3)} | {
    "B-spline smaller than the image": lambda: bspline(3, FIXED.padded(-2)),
    "wrapped B-spline": lambda: sitk.Transform(bspline()),
    "displacement field": displacement,
    "displacement field smaller than the image": lambda: displacement(FIXED.padded(-2)),
}
COMPOSITE = {
    "rigid after B-spline": lambda: composite(linear(sitk.Euler3DTransform), bspline()),
    "B-spline after rigid": lambda: composite(bspline(), linear(sitk.Euler3DTransform)),
    "displacement after affine": lambda: composite(displacement(), linear(sitk.AffineTransform)),
    "three deep": lambda: composite(linear(sitk.AffineTransform), bspline(2), displacement()),
    "nested": lambda: composite(displacement(), composite(linear(sitk.ScaleTransform), linear(sitk.Euler3DTransform))),
}
ALL = LINEAR | LATTICE | COMPOSITE


def resampled_cosines(fixed: Representation, moving: Representation, transform: sitk.Transform) -> np.ndarray:
    """Cosine at the fixed voxels that fall inside the moving image, in float64, by SimpleITK's resampling."""
    inside = moving.grid.image() + 1
    valid = sitk.GetArrayFromImage(sitk.Resample(inside, fixed.grid.image(), transform, sitk.sitkNearestNeighbor)) > 0
    image = sitk.Cast(moving.to_sitk(), sitk.sitkVectorFloat64)
    moved = sitk.Resample(image, fixed.grid.image(), transform, sitk.sitkLinear)
    m, f = sitk.GetArrayFromImage(moved)[valid].astype(float), fixed.values[valid].astype(float)
    return (f * m).sum(axis=-1) / np.linalg.norm(f, axis=-1) / np.linalg.norm(m, axis=-1)


def with_parameters(transform: sitk.Transform, parameters: np.ndarray) -> sitk.Transform:
    moved = type(transform)(transform)
    moved.SetParameters(parameters.tolist())
    return moved


@pytest.mark.parametrize("name", ALL)
def test_value_is_that_of_simpleitk_resampling(images, name):
    transform = ALL[name]()
    metric = CosineMetric(*images)
    cosines = resampled_cosines(*images, transform)
    assert metric.value(transform) == pytest.approx(-cosines.mean(), abs=1e-6)
    assert metric.valid_points == len(cosines)
    assert metric.value_and_derivative(transform)[0] == metric.value(transform)


@pytest.mark.parametrize("name", ALL)
def test_derivative_is_that_of_finite_differences_through_simpleitk_resampling(images, name):
    transform = ALL[name]()
    centre = np.array(transform.GetParameters())
    _, derivative = CosineMetric(*images).value_and_derivative(transform)
    assert derivative.shape == centre.shape
    if name in LINEAR:
        directions, step = np.eye(len(centre)), 1e-7
    else:  # too many parameters: the direction of the derivative, and two at random
        random = np.random.default_rng(6).standard_normal((2, len(centre))) * np.abs(derivative).max()
        directions, step = np.array([derivative, *(derivative + random / 20)]), 1e-7 / np.abs(derivative).max()
    rises = []
    for direction in directions:
        ends = [with_parameters(transform, centre + sign * step * direction) for sign in (1, -1)]
        ahead, back = (resampled_cosines(*images, end) for end in ends)
        assert len(ahead) == len(back)
        rises.append(-(ahead.mean() - back.mean()) / (2 * step))
    found = directions @ derivative
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, rises, atol=1e-3 * np.abs(found).max())


def test_identity_has_a_value_and_no_derivative(images):
    value, derivative = CosineMetric(*images).value_and_derivative(sitk.Transform(3, sitk.sitkIdentity))
    assert value == pytest.approx(-resampled_cosines(*images, sitk.Transform(3, sitk.sitkIdentity)).mean(), abs=1e-6)
    assert derivative.shape == (0,)


@pytest.mark.parametrize("name", [*LATTICE, *COMPOSITE])
def test_points_map_as_in_simpleitk_inside_at_the_border_and_outside(name):
    transform = ALL[name]()
    index = np.random.default_rng(7).uniform(-6, np.array(FIXED.size) + 5, (3000, 3))
    points = FIXED.to_physical(np.concatenate([index, np.round(2 * index) / 2]))
    expected = np.array([transform.TransformPoint(p) for p in points.tolist()])
    off = np.abs(point_map(transform).map(points) - expected).max(axis=1)
    # exactly on a border the last bit decides on which side a point lies
    assert (off[:3000] < 1e-9).all()
    assert np.mean(off < 1e-9) > 0.98


def test_displacement_derivative_is_that_of_float64_automatic_differentiation(images):
    torch = pytest.importorskip("torch")
    fixed, moving = images
    transform = displacement()
    _, derivative = CosineMetric(fixed, moving).value_and_derivative(transform)
    field = torch.tensor(sitk.GetArrayFromImage(transform.GetDisplacementField()), requires_grad=True)
    mapped = torch.tensor(FIXED.points_mm()) + field
    index = (mapped - torch.tensor(MOVING.origin_mm)) @ torch.tensor(MOVING.inverse_matrix).T
    scaled = (2 * index + 1) / torch.tensor(MOVING.size) - 1
    volume = torch.tensor(moving.values, dtype=torch.float64).permute(3, 0, 1, 2)[None]
    moved = torch.nn.functional.grid_sample(volume, scaled[None], padding_mode="border", align_corners=False)[0]
    cosine = torch.nn.functional.cosine_similarity(
        torch.tensor(fixed.values).double().permute(3, 0, 1, 2), moved, dim=0
    )
    inside = ((scaled >= -1) & (scaled < 1)).all(dim=-1)
    (-cosine[inside].mean()).backward()
    expected = field.grad.numpy().ravel()
    np.testing.assert_allclose(derivative, expected, atol=1e-5 * np.abs(expected).max())


def test_derivative_at_points_carries_to_the_parameters(images):
    transform, after = linear(sitk.AffineTransform), bspline()
    metric = CosineMetric(*images, moving_initial=after)
    value, cosine, gradient = metric.at_points(point_map(transform).map(metric.points_mm))
    expected_value, expected = metric.value_and_derivative(transform)
    assert value == pytest.approx(expected_value, abs=1e-12)
    assert -cosine.sum() / metric.valid_points == value
    derivative = np.zeros(12)
    point_map(transform).pull_to_parameters(metric.points_mm, gradient, derivative)
    np.testing.assert_allclose(-derivative / metric.valid_points, expected, rtol=1e-9, atol=1e-14)


def test_several_transforms_at_once_are_as_one_by_one(images, monkeypatch):
    monkeypatch.setattr("dsir_metric.metric.cosine._BLOCK", 4000)  # two transforms fit into one call of the kernel
    metric = CosineMetric(*images, moving_initial=bspline())
    transforms = [sitk.TranslationTransform(3, (shift, 0.5, -0.5)) for shift in (-2.0, 0.3, 1.1, 9.0, 500.0)]
    together = metric.agreements(np.stack([point_map(t).map(metric.points_mm) for t in transforms]))
    alone = [metric.at_points(point_map(t).map(metric.points_mm))[1].mean() for t in transforms[:-1]]
    np.testing.assert_allclose(together, [*alone, 0.0], atol=1e-12)
    assert len(set(together)) == len(transforms)


@pytest.mark.parametrize("name", ["Euler3DTransform", "B-spline of order 3", "rigid after B-spline"])
def test_initial_transforms_act_as_in_itk(images, name):
    fixed, moving = images
    transform, moving_first = ALL[name](), bspline(2, MOVING)
    fixed_first = linear(sitk.TranslationTransform, SetOffset=(2.2, 1.7, -0.9))
    metric = CosineMetric(fixed, moving, moving_initial=moving_first)
    together = composite(moving_first, transform)
    assert metric.value(transform) == CosineMetric(fixed, moving).value(together)
    np.testing.assert_array_equal(
        metric.value_and_derivative(transform)[1], CosineMetric(fixed, moving).value_and_derivative(together)[1]
    )
    shifted = CosineMetric(fixed, moving, fixed_initial=fixed_first)
    moved_grid = Grid(FIXED.size, FIXED.spacing_mm, fixed_first.TransformPoint(FIXED.origin_mm), FIXED.direction)
    away = fixed.resampled(moved_grid)
    found = FIXED.stamp(sitk.GetImageFromArray(away.values.any(axis=-1).astype(np.uint8)))
    expected = CosineMetric(Representation(away.values, FIXED), moving, fixed_mask=found)
    assert shifted.value(transform) == pytest.approx(expected.value(transform), abs=1e-6)
    assert 0 < shifted.valid_points == expected.valid_points < 1716


@pytest.mark.parametrize("masked", ["none", "fixed", "moving", "both"])
@pytest.mark.parametrize("initial", [False, True])
def test_the_points_that_count_are_those_simpleitk_counts(images, masked, initial):
    fixed, moving = images
    rng = np.random.default_rng(8)

    def mask(grid: Grid) -> sitk.Image:
        blobs = ndimage.gaussian_filter(rng.standard_normal(grid.shape), 1.5) > 0
        return grid.stamp(sitk.GetImageFromArray(blobs.astype(np.uint8)))

    masks = {"fixed": mask(FIXED), "moving": mask(MOVING.resampled(1.7))}
    used = [side for side in masks if masked in (side, "both")]
    transform = linear(sitk.TranslationTransform, SetOffset=(6.3, -5.1, 4.2))
    moving_initial, fixed_initial = half_turn(), linear(sitk.TranslationTransform, SetOffset=(2.2, 1.7, -0.9))
    initials = {"moving_initial": moving_initial, "fixed_initial": fixed_initial} if initial else {}
    metric = CosineMetric(fixed, moving, **{f"{side}_mask": masks[side] for side in used}, **initials)
    metric.value(transform)

    native = sitk.ImageRegistrationMethod()
    native.SetMetricAsMeanSquares()
    native.SetInterpolator(sitk.sitkLinear)
    native.SetInitialTransform(transform)
    if initial:
        native.SetMovingInitialTransform(moving_initial)
        native.SetFixedInitialTransform(fixed_initial)
    for side in used:
        getattr(native, f"SetMetric{side.capitalize()}Mask")(masks[side])
    native.SetOptimizerAsGradientDescent(1e-9, 1)
    counted = []
    native.AddCommand(sitk.sitkIterationEvent, lambda: counted.append(native.GetMetricNumberOfValidPoints()))
    native.Execute(*(sitk.VectorIndexSelectionCast(image.to_sitk(), 0) for image in images))
    assert 0 < metric.valid_points < len(FIXED.points_mm().reshape(-1, 3))
    assert counted == [metric.valid_points]


def rotated(grid: Grid, motion: sitk.AffineTransform) -> Grid:
    """The grid after a rigid motion of the patient."""
    direction = np.reshape(motion.GetMatrix(), (3, 3)) @ np.reshape(grid.direction, (3, 3))
    return Grid(grid.size, grid.spacing_mm, motion.TransformPoint(grid.origin_mm), tuple(direction.ravel().tolist()))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("strategy", ["none", "regular", "random"])
def test_a_rigid_change_of_both_headers_changes_nothing(images, mirrored, strategy):
    fixed, moving = images
    matrix = np.reshape(TURN, (3, 3)) @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
    motion = sitk.AffineTransform(matrix.ravel().tolist(), (30.0, -20.0, 5.0))
    inverse = sitk.AffineTransform(motion.GetInverse())
    sampling = Sampling(strategy, 0.5)
    value = CosineMetric(fixed, moving, sampling=sampling).value(linear(sitk.AffineTransform))
    turned = [Representation(image.values, rotated(image.grid, motion)) for image in images]
    conjugate = composite(motion, linear(sitk.AffineTransform), inverse)
    assert CosineMetric(*turned, sampling=sampling).value(conjugate) == pytest.approx(value, abs=1e-6)


def test_flipping_array_and_header_together_changes_nothing(images):
    fixed, moving = images
    last = MOVING.to_physical((MOVING.size[0] - 1, 0, 0))
    flip = Grid(MOVING.size, MOVING.spacing_mm, tuple(last), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    flipped = Representation(np.ascontiguousarray(moving.values[:, :, ::-1]), flip)
    transform = bspline()
    value, derivative = CosineMetric(fixed, moving).value_and_derivative(transform)
    other_value, other = CosineMetric(fixed, flipped).value_and_derivative(transform)
    assert other_value == pytest.approx(value, abs=1e-7)
    np.testing.assert_allclose(other, derivative, atol=1e-5 * np.abs(derivative).max())


def test_length_of_the_descriptors_does_not_matter(images):
    fixed, moving = images
    longer = Representation(fixed.values * 3, FIXED), Representation(moving.values * 0.2, MOVING)
    transform = bspline()
    assert CosineMetric(*longer).value(transform) == pytest.approx(CosineMetric(*images).value(transform), abs=1e-6)


def test_an_image_compared_with_itself_scores_minus_one(images):
    value, derivative = CosineMetric(images[0], images[0]).value_and_derivative(linear(sitk.TranslationTransform))
    best, _ = CosineMetric(images[0], images[0]).value_and_derivative(sitk.TranslationTransform(3))
    assert best == pytest.approx(-1, abs=1e-6)
    assert value > best
    assert derivative @ linear(sitk.TranslationTransform).GetParameters() > 0


def test_a_transform_changed_in_place_is_read_anew(images):
    metric, transform = CosineMetric(*images), linear(sitk.Euler3DTransform)
    before = metric.value(transform)
    transform.SetTranslation((1.0, 2.0, 0.5))
    assert metric.value(transform) != before


def test_sampling_takes_as_many_points_as_itk():
    grid = Grid((10, 9, 7))
    assert len(Sampling().indices(grid)) == 630
    assert len(Sampling("regular", 0.3).indices(grid)) == 158  # one of 4
    assert len(Sampling("random", 0.3).indices(grid)) == 189
    assert len(Sampling("random", 1e-9).indices(grid)) == 1
    np.testing.assert_array_equal(Sampling().indices(grid)[10], (0, 1, 0))


@pytest.mark.parametrize("strategy", ["regular", "random"])
def test_sampling_is_repeatable_by_its_seed_and_spread_within_the_voxel(strategy):
    grid = Grid((20, 20, 20))
    first, again, other = (Sampling(strategy, 0.5, seed).indices(grid) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    stride = np.arange(0, 8000, 2)
    if strategy == "regular":
        jitter = first - np.stack([stride % 20, stride // 20 % 20, stride // 400], axis=-1)
        assert jitter.std(axis=0) == pytest.approx([1 / 3] * 3, rel=0.05)


def test_sampled_values_estimate_the_dense_one(images):
    transform = bspline()
    dense = CosineMetric(*images).value(transform)
    sampled = CosineMetric(*images, sampling=Sampling("random", 0.8)).value(transform)
    assert sampled == pytest.approx(dense, abs=0.03)
    assert sampled != dense


def test_virtual_domain_chooses_where_samples_lie(images):
    fixed, moving = images
    inner = Grid((4, 4, 4), (0.5, 0.5, 0.5), tuple(FIXED.centre_mm))
    metric = CosineMetric(fixed, moving, virtual=inner)
    transform = linear(sitk.Euler3DTransform)
    expected = resampled_cosines(fixed.resampled(inner), moving, transform).mean()
    assert metric.value(transform) == pytest.approx(-expected, abs=1e-6)
    np.testing.assert_allclose(metric.points_mm, inner.points_mm().reshape(-1, 3))


@pytest.mark.parametrize("name", ["AffineTransform", "B-spline of order 3", "displacement field", "three deep"])
def test_any_number_of_threads_gives_the_same_bits(images, name, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    metric, transform, results = CosineMetric(*images), ALL[name](), []
    for threads in (1, 2, 3):
        with at_most(threads):
            results.append(metric.value_and_derivative(transform))
    for value, derivative in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(derivative, results[0][1])


def test_errors_say_what_is_wrong(images):
    fixed, moving = images
    with pytest.raises(ShapeError, match="24 channels and moving 5"):
        CosineMetric(fixed, Representation(moving.values[..., :5], MOVING))
    away = sitk.TranslationTransform(3, (500.0, 0.0, 0.0))
    metric = CosineMetric(fixed, moving)
    far = point_map(away).map(metric.points_mm)
    for call, argument in ((metric.value, away), (metric.value_and_derivative, away), (metric.at_points, far)):
        with pytest.raises(RegistrationError, match="none of 1716 sample points falls inside the moving image"):
            call(argument)
    with pytest.raises(RegistrationError, match="inside the fixed image and its mask"):
        CosineMetric(fixed, moving, fixed_mask=FIXED.image())
    with pytest.raises(ShapeError, match="a mask has one number a voxel; vector"):
        CosineMetric(fixed, moving, moving_mask=MOVING.image(sitk.sitkVectorUInt8, 3))
    with pytest.raises(ShapeError, match="2-D"):
        CosineMetric(fixed, moving).value(sitk.Euler2DTransform())
    with pytest.raises(ConfigError, match="order 0 moves no point"):
        CosineMetric(fixed, moving).value(bspline(0))
    with pytest.raises(ConfigError, match="composite"):
        CosineMetric(fixed, moving).value(sitk.CompositeTransform(3))
    for wrong in ({"strategy": "all"}, {"percentage": 0.0}, {"percentage": 5}, {"seed": -1}):
        with pytest.raises(ConfigError):
            Sampling(**wrong)
