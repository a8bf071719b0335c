"""The GPU benchmark: it measures what it can, says what it cannot, and invents nothing."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

import gpu  # noqa: E402

SMALL = ["--size", "16", "14", "12", "--threads", "1", "--repeats", "1"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "in_its_own_process", lambda *_: pytest.fail("measured"))
    assert gpu.main(SMALL) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "no GPU" in error


def test_the_cosine_on_the_cpu_is_measured_and_compared(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.md"
    assert gpu.main([*SMALL, "--device", "cpu", "--only", "cosine compiled", "--out", str(file)]) == 0
    text = capsys.readouterr().out
    assert file.read_text().strip() == text.strip()
    assert "16 x 14 x 12 voxels" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| compiled float32")]
    nanoseconds, _, value_off, slope_off = (float(cell) for cell in line.strip("| ").split("|")[1:])
    assert nanoseconds > 10
    assert 0 < value_off < 1e-5
    assert 0 < slope_off < 1e-4


@pytest.mark.parametrize("part", ["descriptors by copies", "descriptors, zero copies"])
def test_a_part_prints_its_row(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*SMALL, "--device", "cpu", "--part", part]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"first_s", "best_s", "peak_mb"}
    assert row["best_s"] > 0


def test_parts_fit_the_device() -> None:
    cpu = gpu.chosen(gpu.parse(["--device", "cpu"]))
    cuda = gpu.chosen(gpu.parse(["--network", "lapirn"]))
    assert set(cpu) ^ set(cuda) == {
        "cosine compiled float32", "cosine triton float32", "cosine triton float16", "network lapirn",
    }  # fmt: skip
    assert gpu.chosen(gpu.parse(["--only", "instance dense"])) == ["instance dense", "instance dense velocity"]
    assert all(name.startswith(tuple(gpu.TABLES)) for name in gpu.PARTS)


def test_a_part_that_fails_is_told_and_the_others_stand(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def row(name: str, _: list[str]) -> dict[str, object]:
        return {"failed": "no memory"} if "dense" in name else {"first_s": 2.0, "best_s": 1.0, "peak_mb": 7.0}

    monkeypatch.setattr(gpu, "in_its_own_process", row)
    assert gpu.main(["--device", "cpu", "--only", "instance bspline", "instance dense"]) == 1
    text = capsys.readouterr().out
    assert text.count("failed: no memory") == 2
    assert "| bspline | 2.000 | 1.000 |  | 7 |  |" in text


def test_a_failure_in_a_process_of_its_own_is_its_last_line() -> None:
    row = gpu.in_its_own_process("cosine compiled float32", [*SMALL, "--device", "nowhere"])
    assert "nowhere" in row["failed"]


def test_memory_shows_the_tensors_of_a_gpu() -> None:
    assert gpu.cell({"peak_mb": 900.4, "tensors_mb": 500.0}, "peak_mb") == "900 (500)"
    assert gpu.cell({"value_off": 2.5e-7}, "value_off") == "2.5e-07"
