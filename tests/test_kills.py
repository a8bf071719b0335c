"""A share of `benchmarks/kills.py`: killed commands and full disks; the sweep itself takes minutes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import kills
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, kills.Command]:
    folder = tmp_path_factory.mktemp("scans")
    kills.make_scans(folder)
    return kills.commands(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["register-zarr", "represent-mha"])
def test_a_command_killed_while_it_writes_leaves_nothing_for_long(
    commands: dict[str, kills.Command], tmp_path: Path, name: str, number: signal.Signals
) -> None:
    if "zarr" in name:
        pytest.importorskip("zarr")
    assert kills.kill(commands[name], tmp_path, number, 0.0, writing=True) == []
    assert kills.again(commands[name], tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.skipif(shutil.which("mount") is None, reason="has no mount")
@pytest.mark.parametrize(("name", "free"), [("register", 8192), ("represent-gz", 60_000)])
def test_a_full_disk_is_one_line(commands: dict[str, kills.Command], name: str, free: int) -> None:
    try:
        with kills.small_disk() as disk:
            assert kills.fill(commands[name], disk, free) == []
    except PermissionError:
        pytest.skip("root of a container may not mount")


def test_damage_and_leftovers_are_seen(tmp_path: Path) -> None:
    """The sweep would see what it looks for."""
    (tmp_path / "moved.nii.gz").write_bytes(b"half")
    (tmp_path / ".dsir-01234567-0123456789ab-moved.nii.gz").touch()
    (tmp_path / "result.json").write_text('{"outputs": {"moved.nii.gz": "of another run"}}')
    assert len(kills.damage(tmp_path)) == 2
    assert kills.hidden(tmp_path) == [".dsir-01234567-0123456789ab-moved.nii.gz"]
