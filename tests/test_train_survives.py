"""A run that meets bad files, a full disk or a kill: what it keeps, what it says, and that it goes on as if nothing."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from dsir_metric_train import loader, loop  # noqa: E402
from dsir_metric_train.checkpoint import load_network  # noqa: E402
from dsir_metric_train.loader import Loader, ViewPairs  # noqa: E402
from dsir_metric_train.loop import train  # noqa: E402
from dsir_metric_train.model import MasrNet, ModelConfig  # noqa: E402
from dsir_metric_train.recipe import Recipe  # noqa: E402
from dsir_metric_train.views import Appearance, Placement, Scans  # noqa: E402
from dsir_metric_train.views.cache import Cache  # noqa: E402

from dsir_metric.config import load_toml  # noqa: E402
from dsir_metric.errors import ConfigError, DataError, ModelFileError, ShapeError  # noqa: E402
from dsir_metric.geometry import Grid  # noqa: E402
from dsir_metric.phantom import make_pair  # noqa: E402

RECIPE = """
model = {{widths = [4, 8], features = 2}}
placement = {{crop = 16, spacing_mm = [1.0, 2.0]}}
optimisation = {{steps = {steps}, chunk = 2, points = 100, learning_rate = 3e-3, decay = {decay}, seed = 3}}
base = "{base}"
[[sources]]
kind = "scans"
files = ["*.mha"]
"""


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A dozen small scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    image = make_pair(12, 2.0, amplitude_mm=0.5).fixed
    for k in range(12):
        sitk.WriteImage(image + 10 * k, str(folder / f"{k:02}.mha"))
    return folder


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def recipe(folder: Path, *, steps: int = 6, decay: bool = True, base: str = "") -> Path:
    path = folder.parent / "recipe.toml"
    path.write_text(RECIPE.format(steps=steps, decay=str(decay).lower(), base=base))
    return path


def run(scans: Path, out: Path, *, workers: int = 0, **options: object) -> Path:
    return train(scans.parent / "recipe.toml", out, data_root=scans, workers=workers, progress=False, **options)  # type: ignore[arg-type]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_network(path).state_dict() for path in (one, other))
    return all(torch.equal(value, b[name]) for name, value in a.items())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_cache_keeps_what_was_used_last_within_its_budget() -> None:
    made: list[str] = []

    def volume(name: str) -> tuple[np.ndarray, ...]:
        return cache.get(name, lambda: (made.append(name), (np.zeros(100, np.float32),))[1])

    cache = Cache(budget=800)  # two of 400 bytes
    for name in ("a", "b", "a", "c", "a", "b"):
        volume(name)
    assert made == ["a", "b", "c", "b"]
    assert cache.size == 800
    cache = Cache(budget=1)
    assert volume("d")[0].size == 100  # too large for the budget, and made all the same


def test_scans_are_read_when_drawn_and_the_cache_changes_nothing(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, placement = sorted(scans.glob("*")), Placement(crop=16)
    large, small = (Scans(files, placement, Appearance(), True, cache=Cache(b)) for b in (1 << 30, 1))
    read: list[Path] = []
    monkeypatch.setattr(large, "read", lambda file: (read.append(file), Scans.read(large, file))[1])
    for seed in range(8):
        one, other = (s.draw(np.random.default_rng(seed)) for s in (large, small))
        np.testing.assert_array_equal(one.second, other.second)
    assert 1 < len(read) == len(set(read)) <= 8


def test_a_bad_file_is_passed_over_in_every_process_alike(scans: Path) -> None:
    break_file(scans / "05.mha")
    settings = load_toml(recipe(scans, steps=30), Recipe)
    taken = []
    for workers in (0, 2):
        unusable: dict[str, str] = {}
        pairs = Loader(ViewPairs(settings, settings.open_sources(scans), 0, 30), workers, unusable)
        taken.append([views for _ in range(15) for views, *_ in pairs])
        assert list(unusable) == [str(scans / "05.mha")]
        assert pairs.waited_s > 0
    assert len(taken[0]) == len(taken[1]) == 30
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    assert [len(list(pairs)) for _ in range(2)] == [0, 0]


def test_a_bad_file_is_counted_and_told_at_the_end(scans: Path, tmp_path: Path) -> None:
    break_file(scans / "05.mha")
    recipe(scans, steps=30)
    with pytest.warns(RuntimeWarning, match=r"1 scans could not be used and were left out: .*05\.mha: is truncated"):
        checkpoint = run(scans, tmp_path / "out")
    assert rows(tmp_path / "out")[-1]["unusable"] == "1"
    used = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["data"]
    assert [entry["file"] for entry in used] == [f"{k:02}.mha" for k in range(12) if k != 5]


def test_more_than_a_tenth_of_bad_files_stops(scans: Path, tmp_path: Path) -> None:
    for name in ("05.mha", "07.mha"):
        break_file(scans / name)
    recipe(scans, steps=200)
    with pytest.raises(DataError, match="2 of 12 scans cannot be used, more than a tenth; the first: ") as caught:
        run(scans, tmp_path / "out", workers=1)
    assert "\n" not in str(caught.value)
    for child in multiprocessing.active_children():  # on a busy machine torch kills it, and does not wait
        child.join(30)
    assert not multiprocessing.active_children()


def test_flat_images_among_scans_are_told_before_training(scans: Path, tmp_path: Path) -> None:
    flat = Grid((64, 64, 2)).image(sitk.sitkFloat32)[:, :, 0]
    for name in ("x.mha", "y.mha"):
        sitk.WriteImage(flat, str(scans / name))
    recipe(scans)
    with pytest.raises(ShapeError, match=r"x\.mha: is a 2-D image, as 2 of 14 here; 3-D scans are expected: move it"):
        run(scans, tmp_path / "out")


def test_resumed_run_keeps_the_earlier_lines(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(scans, steps=7)
    run(scans, tmp_path / "whole")
    out, taken = tmp_path / "out", []
    original = loader.ViewPairs.draw

    def failing(self: ViewPairs, item: int) -> loader.Pair:
        taken.append(item)
        if len(taken) == 6:
            raise DataError("the sixth is lost")
        return original(self, item)

    monkeypatch.setattr(loader.ViewPairs, "draw", failing)
    with pytest.raises(DataError, match="the sixth is lost"):
        run(scans, out)
    monkeypatch.undo()
    assert [row["step"] for row in rows(out)] == ["2", "4"]
    with (out / "log" / "metrics.csv").open("a") as file:
        file.write("6,0,0,0,0,0\r\n")  # written, but killed before the checkpoint
    run(scans, out, resume=True)
    assert [row["step"] for row in rows(out)] == ["2", "4", "6", "7"]
    for column in ("loss", "retrieval", "unusable"):
        assert [row[column] for row in rows(out)] == [row[column] for row in rows(tmp_path / "whole")]
    assert all(float(row["pairs_per_second"]) > 0 and float(row["waited_s"]) > 0 for row in rows(out))
    assert same_weights(out / "last.ckpt", tmp_path / "whole" / "last.ckpt")


def test_a_log_that_is_none_is_told_in_one_line(scans: Path, tmp_path: Path) -> None:
    recipe(scans, steps=2, decay=False)
    run(scans, tmp_path / "out")
    recipe(scans, steps=4, decay=False)
    log = tmp_path / "out" / "log" / "metrics.csv"
    for broken in (b"\xff\xfe\x00", b"loss\r\n1\r\n", b"step,loss\r\nfirst,1\r\n"):
        log.write_bytes(broken)
        with pytest.raises(DataError, match=r"metrics\.csv: is no log of a training; move it away"):
            run(scans, tmp_path / "out", resume=True)
    assert log.read_bytes() == broken
    log.unlink()
    run(scans, tmp_path / "out", resume=True)
    assert [row["step"] for row in rows(tmp_path / "out")] == ["4"]


def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(scans: Path, tmp_path: Path) -> None:
    recipe(scans, steps=2)
    out = tmp_path / "out"
    whole = run(scans, out).read_bytes()
    recipe(scans, steps=4)
    with pytest.raises(
        ConfigError, match=r"made by another recipe \(optimisation\.steps was 2, now 4\); give it again"
    ):
        run(scans, out, resume=True)  # the learning rate would fall, and rise again
    wide = recipe(scans, steps=2)
    wide.write_text(wide.read_text().replace("[4, 8]", "[4, 6]"))
    with pytest.raises(ConfigError, match=r"another recipe \(other model\.widths\)"):
        run(scans, out, resume=True)
    recipe(scans, steps=2)
    for broken in (whole[:2000], b"hello"):
        (out / "last.ckpt").write_bytes(broken)
        with pytest.raises(ModelFileError, match=r"last\.ckpt: is no checkpoint, or a damaged one"):
            run(scans, out, resume=True)
    assert (out / "last.ckpt").read_bytes() == b"hello"


def test_full_disk_keeps_the_last_good_checkpoint(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(scans)
    original, written = torch.save, []

    def full(content: object, path: Path) -> None:
        original(content, path)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
        run(scans, out)
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["last.ckpt", "log"]


def test_a_checkpoint_that_does_not_fit_is_one_line(scans: Path, tmp_path: Path) -> None:
    recipe(scans)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the kernel refuses, as it does when a disk is full
    try:
        with pytest.raises(DataError, match=r"last\.ckpt: cannot be written") as caught:
            run(scans, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["log"]


def test_broken_weights_are_not_saved(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(scans)
    steps = []

    def breaking(*args: torch.Tensor, **options: bool) -> torch.Tensor:  # a sound loss with a gradient that is none
        steps.append(args)
        loss = contrast(*args, **options)
        return loss if len(steps) < 4 else loss + (0 * args[0]).sum().sqrt()

    contrast = loop.contrastive_loss
    monkeypatch.setattr(loop, "contrastive_loss", breaking)
    with pytest.raises(DataError, match="weights are no numbers at step 4; the last good checkpoint stays"):
        run(scans, tmp_path / "out")
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_run_may_begin_with_given_weights(scans: Path, tmp_path: Path) -> None:
    recipe(scans, steps=1, base="0123456789abcdef")
    with pytest.raises(ConfigError, match="begins with the weights 0123456789ab; give the model"):
        run(scans, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"\[model\] is not that of the given weights"):
        run(scans, tmp_path / "out", network=MasrNet(ModelConfig(widths=(4, 8), features=3)))
    networks = [MasrNet(ModelConfig(widths=(4, 8), features=2)) for _ in range(2)]
    before = [n.out.weight.detach().clone() for n in networks]
    after = [load_network(run(scans, tmp_path / f"{k}", network=n)).out.weight.detach() for k, n in enumerate(networks)]
    assert not torch.allclose(before[0], before[1], atol=0.02)
    for old, new in zip(before, after, strict=True):
        assert 0 < (old - new).abs().max() < 0.01  # one step of Adam


SCRIPT = """
import sys
import torch
from dsir_metric_train.loop import train
torch.set_num_threads(int(sys.argv[4]))  # bits depend on it
train(sys.argv[1], sys.argv[2], data_root=sys.argv[3], workers=1, progress=False)
"""


def test_killed_at_any_moment_and_resumed_is_as_never_killed(scans: Path, tmp_path: Path) -> None:
    recipe(scans, steps=400, decay=False)
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path / "recipe.toml", out, scans, str(torch.get_num_threads())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until = time.monotonic() + 120
        while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))  # any moment will do, so another one each time
        process.kill()
    reached = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
    assert 2 <= reached < 400, "the run was to be killed on its way"
    (out / ".12345678-last.ckpt").write_bytes(b"half of one")
    recipe(scans, steps=reached + 6, decay=False)
    run(scans, out, resume=True)
    run(scans, tmp_path / "whole")
    assert sorted(p.name for p in out.iterdir()) == ["last.ckpt", "log"]
    assert same_weights(out / "last.ckpt", tmp_path / "whole" / "last.ckpt")
