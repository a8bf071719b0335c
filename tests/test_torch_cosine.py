"""The cosine in torch: one function, three implementations, and the metric of the run time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from dsir_metric.errors import ConfigError, MissingDependencyError, ShapeError  # noqa: E402
from dsir_metric.metric import CosineMetric  # noqa: E402
from dsir_metric.phantom import PhantomPair  # noqa: E402
from dsir_metric.represent import Representation, Representer  # noqa: E402
from dsir_metric.torch import cosine as module  # noqa: E402
from dsir_metric.torch.cosine import cosine_at  # noqa: E402
from dsir_metric.torch.warp import sample  # noqa: E402

SHAPE = (5, 6, 7)  # z, y, x
SIZE = torch.tensor(SHAPE[::-1])
POINTS = 150  # more than two programs of the Triton kernel, the last one part full
CHANNELS = (24, 5, 40)  # the model's, no multiple of anything, more than are read at once
IMPLEMENTATIONS = ("compiled", "triton")

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def problem(channels: int, zeros: bool = False) -> Tensors:
    """Fixed, moving and index; a third of the points lies outside."""
    random = torch.Generator().manual_seed(channels)
    fixed, moving = (torch.randn(*n, channels, generator=random) for n in ((POINTS,), SHAPE))
    index = (torch.rand(POINTS, 3, generator=random) * 1.3 - 0.15) * SIZE - 0.5
    index[0] = float("nan")
    index[1], index[2] = -0.5, SIZE - 0.5
    index[3] = torch.nextafter(SIZE - 0.5, torch.zeros(3))
    if zeros:
        fixed[:50] = 0
        moving[:3] = 1e-12
    return fixed, moving, index


def outcome(tensors: Tensors, implementation: str) -> Tensors:
    """Cosine, inside and derivative of a weighted sum."""
    fixed, moving, index = tensors
    index = index.clone().requires_grad_()
    cosine, inside = cosine_at(fixed, moving, index, implementation)
    (cosine * torch.linspace(1, 2, len(index))).sum().backward()
    return cosine.detach(), inside, index.grad


INTERPRETED = """
import sys, warnings
import torch
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")  # a NaN becomes an integer in NumPy
import test_torch_cosine as t
out = dict()
for channels in t.CHANNELS:
    out[channels] = t.outcome(t.problem(channels), "triton")
zeros, (fixed, moving, index) = t.problem(24, zeros=True), t.problem(24)
out["zeros"] = t.outcome(zeros, "triton")
out["half"] = t.outcome((fixed.half(), moving.half(), index), "triton")
out["double index"] = t.outcome((fixed, moving, index.double()), "triton")
out["value alone"] = t.cosine_at(fixed, moving, index, "triton")
out["flat"] = t.outcome((fixed, moving[:1], index), "triton")
torch.save(out, {file!r})
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[object, Tensors]:
    """What the Triton kernel answers, in Triton's interpreter, which must be chosen before the import."""
    pytest.importorskip("triton")
    file = tmp_path_factory.mktemp("triton") / "out.pt"
    code = INTERPRETED.format(tests=str(Path(__file__).parent), file=str(file))
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return torch.load(file)


def close(came: Tensors, expected: Tensors, tolerance: float = 2e-6) -> None:
    assert torch.equal(came[1], expected[1])
    torch.testing.assert_close(came[0], expected[0], rtol=0, atol=tolerance, check_dtype=False)
    torch.testing.assert_close(came[2], expected[2], rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementations_agree(implementation: str, channels: int, request: pytest.FixtureRequest) -> None:
    tensors = problem(channels)
    if implementation == "triton":
        came = request.getfixturevalue("interpreted")[channels]
    else:
        came = outcome(tensors, implementation)
    assert came[0].dtype == torch.float32
    close(came, outcome(tensors, "torch"))
    assert 50 < came[1].sum() < POINTS - 30
    assert came[2].abs().max() > 0.1


def test_the_reference_is_the_cosine_of_trilinear_values() -> None:
    fixed, moving, index = problem(24)
    cosine, inside = cosine_at(fixed, moving, index, "torch")
    places = index[inside].T.reshape(1, 3, 1, 1, -1).contiguous()
    values = sample(moving.movedim(-1, 0)[None], places)[0, :, 0, 0].T
    expected = torch.cosine_similarity(fixed[inside], values)
    torch.testing.assert_close(cosine[inside], expected, rtol=0, atol=2e-6)
    assert torch.equal(inside, ((index >= -0.5) & (index < SIZE - 0.5)).all(1))
    assert not cosine[~inside].any()


def test_the_derivative_of_the_reference_is_that_of_its_value() -> None:
    random = torch.Generator().manual_seed(0)
    fixed, moving = torch.randn(9, 4, generator=random).double(), torch.randn(*SHAPE, 4, generator=random).double()
    cell = torch.randint(-1, 7, (9, 3), generator=random)
    index = (cell + 0.1 + 0.3 * torch.rand(9, 3, generator=random)).double()  # away from voxels and from the border
    index[:, :2] += 0.45 * (cell[:, :2] < 0)  # some over the outer half voxel
    cosine, inside = cosine_at(fixed, moving, index, "torch")
    assert cosine.dtype == torch.float64
    assert 0 < inside.sum() < 9
    assert torch.autograd.gradcheck(
        lambda i: cosine_at(fixed, moving, i, "torch")[0], index.requires_grad_(), eps=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("implementation", ["torch", "compiled"])
def test_a_second_derivative_is_refused(implementation: str) -> None:
    fixed, moving, index = problem(5)
    index.requires_grad_()
    total = cosine_at(fixed, moving, index, implementation)[0].square().sum()
    (slope,) = torch.autograd.grad(total, index, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.nan_to_num().sum().backward()


@pytest.mark.parametrize("implementation", ["torch", "compiled"])
def test_the_outer_half_voxel_is_constant_and_what_follows_outside(implementation: str) -> None:
    moving = torch.randn(*SHAPE, 3, generator=torch.Generator().manual_seed(1))
    index = torch.tensor(
        [[-0.5, 2, 3], [-0.1, 2, 3], [6.49, 2, 3], [-0.51, 2, 3], [6.5, 2, 3], [3, 5.5, 1], [3, 2, -1]]
    )
    cosine, inside, slope = outcome((torch.ones(7, 3), moving, index), implementation)
    assert inside.tolist() == [True, True, True, False, False, False, False]
    assert cosine[0] == cosine[1] != 0
    assert not slope[:3, 0].any()
    assert slope[:3, 1:].all()
    assert not cosine[3:].any()
    assert not slope[3:].any()


@pytest.mark.parametrize("implementation", ["torch", *IMPLEMENTATIONS])
def test_absent_descriptors_count_as_unlike(implementation: str, request: pytest.FixtureRequest) -> None:
    tensors = problem(24, zeros=True)
    if implementation == "triton":
        cosine, inside, slope = request.getfixturevalue("interpreted")["zeros"]
    else:
        cosine, inside, slope = outcome(tensors, implementation)
    _, _, index = tensors
    absent = inside & ((torch.arange(POINTS) < 50) | (index[:, 2] <= 2))
    assert absent.sum() > 40
    assert not cosine[absent].any()
    assert not slope[absent].any()
    assert cosine[inside & ~absent].all()
    assert slope[inside & ~absent & (index[:, 2] < SHAPE[0] - 1)].any(1).all()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_half_precision_descriptors_are_summed_in_single(implementation: str, request: pytest.FixtureRequest) -> None:
    fixed, moving, index = problem(24)
    half = fixed.half(), moving.half(), index
    came = request.getfixturevalue("interpreted")["half"] if implementation == "triton" else outcome(half, "torch")
    close(came, outcome((half[0].float(), half[1].float(), index), "torch"))
    close(came, outcome((fixed, moving, index), "torch"), 2e-3)


def test_the_fused_kernel_takes_indices_in_double_flat_volumes_and_no_derivative(interpreted) -> None:
    fixed, moving, index = problem(24)
    assert interpreted["double index"][2].dtype == torch.float64
    close(interpreted["double index"], outcome((fixed, moving, index.double()), "torch"))
    close(interpreted["flat"], outcome((fixed, moving[:1], index), "torch"))
    assert torch.equal(interpreted["value alone"][0], interpreted[24][0])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("derivative", [True, False])
def test_the_fused_kernel_compiles_for_a_gpu(dtype: str, derivative: bool) -> None:
    """The interpreter takes what the compiler refuses; compiling needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from dsir_metric.torch import fused

    names = ("count", "nz", "ny", "nx")
    types = {"fixed": f"*{dtype}", "moving": f"*{dtype}", "index": "*fp32", "cosine": "*fp32", "inside": "*i1"}
    constants = {"TINY": 1e-20, "CHANNELS": 24, "WIDTH": 8, "POINTS": 64, "DERIVATIVE": derivative}
    types |= {"gradient": "*fp32"} | dict.fromkeys(names, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = {(k,): [["tt.divisibility", 16]] for k in range(6)}  # torch's memory is
    source = triton.compiler.ASTSource(fused._kernel, types, constants, aligned)
    options = {"enable_fp_fusion": True}
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
    assert "ld.global.v4.b32" in code or (dtype == "fp16" and "ld.global.v2.b32" in code)  # four channels at once
    assert "st.local" not in code  # nothing spilled


def test_parts_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = problem(24)
    expected = [outcome(tensors, name) for name in ("torch", "compiled")]
    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(module, "_BLOCK", 7)
    for name, whole in zip(("torch", "compiled"), expected, strict=True):
        for a, b in zip(outcome(tensors, name), whole, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_the_compiled_kernel_reads_the_tensor_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, index = problem(24)
    addresses = []

    def kernel(f, rows, volume, *rest: np.ndarray) -> None:
        addresses.append((f.ctypes.data, volume.ctypes.data))

    monkeypatch.setattr(module.kernel, "cosine_and_gradient", kernel)
    cosine_at(fixed, moving, index)  # "auto" is the compiled kernel here
    assert addresses == [(fixed.data_ptr(), moving.data_ptr())]


@pytest.fixture(scope="module")
def described(pair: PhantomPair) -> tuple[Representation, Representation]:
    representer = Representer(device="cpu", threads=1)
    return representer(pair.fixed), representer(pair.moving)


@pytest.mark.parametrize("implementation", ["torch", "compiled"])
def test_parity_with_the_metric(described: tuple[Representation, Representation], implementation: str) -> None:
    fixed, moving = described
    transform = sitk.Euler3DTransform(fixed.grid.centre_mm.tolist(), 0.05, -0.1, 0.07, (4.0, -6.0, 3.0))
    metric = CosineMetric(fixed, moving)
    mapped = np.array([transform.TransformPoint(p) for p in metric.points_mm[::7].tolist()])
    every = np.array(metric.points_mm)
    every[::7] = mapped
    value, cosine, gradient = metric.at_points(every)
    index = torch.from_numpy((every - moving.grid.origin_mm) @ moving.grid.inverse_matrix.T).requires_grad_()
    fixed_rows, volume = torch.from_numpy(fixed.values).reshape(-1, 24), torch.from_numpy(moving.values)
    ours, inside = cosine_at(fixed_rows, volume, index, implementation)
    ours.sum().backward()
    per_mm = index.grad.numpy() @ moving.grid.inverse_matrix
    assert int(inside.sum()) == metric.valid_points < len(every)
    assert abs(-float(ours.detach().sum() / inside.sum()) - value) < 1e-6
    np.testing.assert_allclose(ours.detach().numpy(), cosine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(per_mm, gradient, rtol=0, atol=1e-5)
    assert np.abs(gradient).max() > 0.05


def test_no_point_is_no_error() -> None:
    fixed, moving, index = problem(5)
    for name in ("torch", "compiled"):
        cosine, inside = cosine_at(fixed[:0], moving, index[:0], name)
        assert cosine.shape == inside.shape == (0,)


def test_shapes_and_layouts_are_checked() -> None:
    fixed, moving, index = problem(24)
    wrong = [
        (fixed[:, :5].contiguous(), moving, index),
        (fixed, moving[0], index),
        (fixed[:10], moving, index),
        (fixed, moving, index.T),
    ]
    for tensors in wrong:
        with pytest.raises(ShapeError, match="came"):
            cosine_at(*tensors)
    with pytest.raises(ShapeError, match="no voxel"):
        cosine_at(fixed, moving[:0], index)
    for tensors in ((fixed, moving.transpose(0, 1), index), (fixed.T.contiguous().T, moving, index)):
        with pytest.raises(ShapeError, match="contiguous"):
            cosine_at(*tensors)


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, index = problem(24)
    with pytest.raises(ConfigError, match="unknown"):
        cosine_at(fixed, moving, index, "cuda")
    with pytest.raises(ConfigError, match="compiled cosine takes float32"):
        cosine_at(fixed.half(), moving.half(), index, "compiled")
    with pytest.raises(ConfigError, match="index is"):
        cosine_at(fixed, moving, index.half())
    with pytest.raises(ConfigError, match="floating"):
        cosine_at(fixed.int(), moving, index)
    with pytest.raises(ConfigError, match="one device"):
        cosine_at(fixed.to("meta"), moving, index)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        cosine_at(fixed, moving, index, "triton")


def test_the_fused_kernel_wants_cuda() -> None:
    pytest.importorskip("triton")
    fixed, moving, index = problem(24)
    with pytest.raises(ConfigError, match="on CUDA"):
        cosine_at(fixed, moving, index, "triton")


def test_auto_takes_what_can_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, index = problem(24)
    taken = []
    for name in ("_compiled", "_plain"):
        does = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, does=does: taken.append(n) or does(*a))
    cosine_at(fixed, moving, index)
    cosine_at(fixed.half(), moving.half(), index)
    cosine_at(fixed.double(), moving.double(), index)
    assert taken == ["_compiled", "_plain", "_plain"]
