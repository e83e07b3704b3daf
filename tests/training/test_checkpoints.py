"""Checkpoints are written whole or not at all, in parallel with the steps; the newest readable one is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training.checkpoints import Checkpoints
from tests.support.processes import small_disk


def saved(step: int) -> dict[str, object]:
    return {"step": step, "learner": {"weights": torch.full((1000,), float(step))}}


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    return f"{request.getfixturevalue('s3_bucket')}/phase/checkpoints"


def written(uri: str, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(uri, keep=keep)
    for step in steps:
        checkpoints.save(step, saved(step))
    checkpoints.wait()
    return checkpoints


def test_the_newest_checkpoints_are_kept_and_the_last_is_found(uri: str) -> None:
    checkpoints = written(uri, 20, 40, 100)
    assert checkpoints.names() == ["step_000000000040.pt", "step_000000000100.pt"]
    name, found, problems = Checkpoints(uri, keep=2).newest()
    assert found["step"] == 100
    assert (name, problems) == ("step_000000000100.pt", [])
    loaded = checkpoints.load("step_000000000100.pt")
    assert loaded["step"] == 100
    assert torch.equal(loaded["learner"]["weights"], torch.full((1000,), 100.0))


def test_a_new_phase_has_no_checkpoint(uri: str) -> None:
    assert Checkpoints(uri, keep=2).newest() == (None, {}, [])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_off_checkpoint_is_reported_and_the_previous_one_is_used(uri: str, share: float) -> None:
    checkpoints = written(uri, 1, 2)
    newest = files.join(uri, "step_000000000002.pt")
    whole = files.read(newest)
    files.write(newest, whole[: int(share * len(whole))])
    name, _, (problem,) = checkpoints.newest()
    assert name == "step_000000000001.pt"
    assert "step_000000000002.pt" in problem
    assert "\n" not in problem


def test_a_checkpoint_with_a_flipped_bit_is_reported(uri: str) -> None:
    checkpoints = written(uri, 1, 2)
    newest = files.join(uri, "step_000000000002.pt")
    whole = bytearray(files.read(newest))
    whole[len(whole) // 2] ^= 1
    files.write(newest, bytes(whole))
    name, _, problems = checkpoints.newest()
    assert name == "step_000000000001.pt"
    assert len(problems) == 1


def test_newer_and_unfinished_checkpoints_are_removed(uri: str) -> None:
    checkpoints = written(uri, 1, 2)
    newest = files.join(uri, "step_000000000002.pt")
    files.write(newest, files.read(newest)[:100])
    files.write(files.join(uri, ".step_000000000003.pt.77.partial"), b"a killed writer's")
    files.write(files.join(uri, "step_000000000004.pt.1a2b3c4d.tmp"), b"another's, where a store renames")
    name = checkpoints.newest().name
    checkpoints.remove_newer(name)
    assert files.names(uri) == ["step_000000000001.pt"]
    checkpoints.remove_newer(None)
    assert files.names(uri) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 16 KiB."""
    with small_disk(tmp_path / "disk", "16k") as uri:
        yield uri


def test_a_full_disk_loses_only_the_checkpoint_that_is_written(full_disk: Path) -> None:
    checkpoints = written(str(full_disk / "checkpoints"), 1)
    ballast = full_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(full_disk).f_bavail * os.statvfs(full_disk).f_frsize))
    checkpoints.save(2, saved(2))
    with pytest.raises(StoreError, match=r"step_000000000002\.pt: No space left on device"):
        checkpoints.wait()
    name, found, problems = checkpoints.newest()
    assert (name, found["step"], problems) == ("step_000000000001.pt", 1, [])
    assert os.listdir(full_disk / "checkpoints") == ["step_000000000001.pt"], "no litter"
    ballast.unlink()
    checkpoints.save(3, saved(3))
    checkpoints.wait()
    assert checkpoints.newest().name == "step_000000000003.pt"


def test_the_error_of_a_write_is_raised_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=2)
    checkpoints.save(1, saved(1))
    with pytest.raises(StoreError, match="cannot write the checkpoint"):
        checkpoints.save(2, saved(2))
