"""A study with a limit of memory for each worker: shared voxels, as many workers as fit, kept where it is the same."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.batch import cluster, run, work
from dsir_metric.batch.cluster import pairs_at_once
from dsir_metric.batch.pairs import Pair, read_pairs
from dsir_metric.batch.work import Work
from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import RegisterConfig
from dsir_metric.register.forecast import open_representer, turning_bytes, within_memory
from dsir_metric.represent import Cache, Representation, Representer
from dsir_metric.represent.pair import shared_spacing, working_grids

pytest.importorskip("distributed")

MB = 10**6
LITTLE = 800 * MB  # too little for the second pair at the voxels that are chosen without a limit
CENTRE = RegisterConfig(stages=("centre",), threads=1)


@pytest.fixture
def study(tmp_path: Path, pair: PhantomPair) -> Path:
    """A pair of large voxels, and one of small ones."""
    fine = {"fixed": sitk.Expand(pair.fixed, [2, 2, 2]), "m0": pair.moving, "m1": sitk.Expand(pair.moving, [2, 2, 2])}
    for name, image in fine.items():
        io.write_image(image, tmp_path / f"{name}.nii.gz")
    path = tmp_path / "pairs.csv"
    path.write_text("id,fixed,moving\na,m0.nii.gz,m0.nii.gz\n\nb,fixed.nii.gz,m1.nii.gz\n")
    return path


def batch(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["register-batch", *map(str, arguments)])
    return result.exit_code, result.stderr


def test_voxels_within_memory_are_those_that_a_study_shares() -> None:
    fixed, moving = Grid((200, 200, 160)), Grid((180, 200, 150), (1.1, 1.0, 1.2))
    config = RegisterConfig(memory_bytes=1500 * MB, threads=1)
    representer = open_representer(config, fixed, moving)
    for one, other in ((fixed, moving), (moving, fixed), (fixed, fixed)):
        spacing, remark = within_memory(config, one, other, representer, shared=True)
        assert f"1500 MB are allowed: voxels of {spacing:.3g} mm are taken instead" in remark
        assert spacing == shared_spacing(spacing) > shared_spacing(1.1)
        assert working_grids(one, other, spacing, shared=True)[0].spacing_mm == (spacing,) * 3
        asked = replace(config, spacing_mm=shared_spacing(spacing, -1))  # those before are too small
        with pytest.raises(ConfigError, match=r"allow that much \(--memory\), or take voxels of [\d.]+ mm"):
            within_memory(asked, one, other, representer, shared=True)
    plenty = replace(config, memory_bytes=16_000 * MB)
    assert within_memory(plenty, fixed, moving, representer, shared=True) == (shared_spacing(1.1), "")


def test_a_worker_keeps_to_the_memory_and_says_what_it_cost(study: Path) -> None:
    out = study.parent / "out"
    code, told = batch(study, "-o", out, "--stages", "centre", "--threads", 1, "--memory", "800MB")
    assert code == 0, told
    first, second = (json.loads((out / name / "result.json").read_text()) for name in "ab")
    assert first["working_spacing_mm"] == shared_spacing(4.5)
    assert second["working_spacing_mm"] == shared_spacing(2.25, 1)
    assert not [line for line in first["warnings"] if "allowed" in line]
    assert "800 MB are allowed: voxels of 2.83 mm are taken instead" in second["warnings"][0]
    assert "mm are taken instead" in (out / "table.csv").read_text()
    assert batch(study, "-o", out, "--stages", "centre", "--memory", "801MB")[1].count("2 kept") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--memory", "500MB"],
            r"row 2: voxels of 4.76 mm need .* 500 MB are allowed, and larger ones \d+ MB at least",
        ),
        (["--memory", "650MB"], r"row 4: voxels of 2.38 mm need"),
        (["--memory", "800MB", "--spacing", "2"], r"allow that much \(--memory\), or take voxels of [\d.]+ mm"),
        (["--memory", "4GB", "--workers", "1000"], "2 workers together may have 8000 MB of memory, 3800 MB"),
        (["--memory", "1GB", "--backend", "ants"], "only sitk keeps to a limit"),
        (["--memory", "much"], "'much' is no size"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_starts(
    study: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 4000 * MB)
    code, told = batch(study, "-o", study.parent / "out", *more)
    assert (code, told.count("\n")) == (2, 1), told
    assert re.search(message, told), told
    assert not (study.parent / "out").exists()


def test_what_is_done_is_kept_while_the_memory_changes_nothing(study: Path) -> None:
    job = read_pairs(study, study.parent / "out")[1].job
    free = Work.of(CENTRE)
    assert free(job).state == "done"
    little, plenty = (replace(free, config=replace(CENTRE, memory_bytes=m)) for m in (LITTLE, 4000 * MB))
    assert plenty(job).state == "kept"
    assert little.spacing(job)[0] > plenty.spacing(job)[0]
    assert little(job).state == "done"
    hardly_more = replace(free, config=replace(CENTRE, memory_bytes=LITTLE + 1))
    assert hardly_more.spacing(job) == little.spacing(job)
    assert hardly_more(job).state == "kept"
    assert plenty(job).state == "done"
    assert free(job).state == "kept"


def test_a_turn_that_the_memory_decides_is_done_again(tmp_path: Path) -> None:
    """At the same voxels, more memory lets the moving scan be represented along turned axes."""
    pair = make_pair(32, 6.0, rotation_deg=(0.0, 0.0, 14.0), translation_mm=(0.0, 0.0, 0.0), amplitude_mm=2.0)
    start = sitk.Euler3DTransform((0, 0, 0), 0.0, 0.0, np.deg2rad(14))
    io.write_image(pair.fixed, tmp_path / "f.nii.gz")
    io.write_image(pair.moving, tmp_path / "m.nii.gz")
    sitk.WriteTransform(start, str(tmp_path / "t.h5"))
    (tmp_path / "pairs.csv").write_text("fixed,moving,initial_transform\nf.nii.gz,m.nii.gz,t.h5\n")
    job = read_pairs(tmp_path / "pairs.csv", tmp_path / "out")[0].job
    config = RegisterConfig(stages=("rigid",), threads=1)

    def under(memory: int | None) -> Work:
        return Work.of(replace(config, memory_bytes=memory))

    def turned() -> bool:
        return json.loads((job.output / "result.json").read_text())["turned_deg"] > 5.0

    assert under(None)(job).state == "done"
    assert turned()
    (needed,) = json.loads((job.output / "result.json").read_text())["again_bytes"]
    assert under(needed)(job).state == "kept"
    assert under(2 * needed)(job).state == "kept"
    less = under(needed - 1)
    assert less(job).state == "done"
    assert not turned()
    assert less(job).state == "kept"
    assert under(needed)(job).state == "done"
    assert turned()


def test_the_bytes_of_a_turn_are_the_least_that_do() -> None:
    grid = Grid((150, 160, 140))
    working = grid.resampled(2.0), grid.resampled(2.0)
    turned = Grid((200, 200, 190)).resampled(2.0)
    for shared in (False, True):
        make = open_representer(RegisterConfig(threads=1), grid, grid)
        needed = turning_bytes(grid, grid, working, turned, make, shared=shared)
        held = 10**8
        least = make.least_bytes(turned, held)
        assert needed > least
        for memory, lacking in ((least, 0), (least - 1, 1)):
            assert make.within(memory).plan(turned, held).lacking_bytes == lacking


def test_the_model_that_plans_takes_no_gpu(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, really = [], work._representer

    def open_it(model: str, model_hash: str, device: str, *rest: int | None) -> Representer:
        opened.append(device)
        return really(model, model_hash, device, *rest)

    monkeypatch.setattr(work, "_representer", open_it)
    config = replace(CENTRE, device="cuda", memory_bytes=4000 * MB)
    run._check_memory(Work.of(config), read_pairs(study, study.parent / "out"))
    assert opened == ["cpu", "cpu"]


def test_workers_follow_from_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(None, 2 * 500**3, 2 * 200**3)  # type: ignore[arg-type]
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 16_000 * MB)
    for memory, count in ((4000, 3), (2000, 6), (1000, 8), (15_000, 1)):
        assert pairs_at_once([pair] * 20, replace(CENTRE, memory_bytes=memory * MB)) == count
    with pytest.raises(ConfigError, match=r"a worker may have 16000 MB .*, 15200 MB .*: allow less \(--memory\)"):
        pairs_at_once([pair], replace(CENTRE, memory_bytes=16_000 * MB))


@pytest.mark.parametrize(("has", "refused"), [(0, False), (4000 * MB, False), (2000 * MB, True)])
def test_workers_of_a_cluster_that_have_less_are_refused(tmp_path: Path, has: int, refused: bool) -> None:
    answers = {version: version("dsir-metric")}
    client = SimpleNamespace(
        run=lambda question, *_, **__: {"tcp://w:1": answers.get(question, True)},
        nthreads=lambda: {"tcp://w:1": 1},
        scheduler_info=lambda **_: {"workers": {"tcp://w:1": {"memory_limit": has}}},
    )
    if refused:
        with pytest.raises(ConfigError, match="worker tcp://w:1 is ended by dask at 1900 MB, 2000 MB are allowed"):
            cluster._check_workers(client, tmp_path, 2000 * MB)
    else:
        cluster._check_workers(client, tmp_path, 2000 * MB)
    cluster._check_workers(client, tmp_path, None)


def test_what_the_cache_rounds_is_not_copied(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4))
    made = Representation(np.full((4, 4, 4, 24), 0.3, np.float32), grid)
    assert Cache(tmp_path).get("ab", grid, lambda: made).values is made.values
    assert (made.values == np.float32(np.float16(0.3))).all()
