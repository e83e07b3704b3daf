"""Checkpoints: written beside the steps, whole or not at all; the newest that can be read is taken."""

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
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    return f"{request.getfixturevalue('s3_bucket')}/phase/checkpoints"


def written(place: str, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(place, keep=keep)
    for step in steps:
        checkpoints.save(step, saved(step))
    checkpoints.wait()
    return checkpoints


def test_the_newest_are_kept_and_the_last_is_found(place: str) -> None:
    checkpoints = written(place, 20, 40, 100)
    assert checkpoints.names() == ["step_000000000040.pt", "step_000000000100.pt"]
    name, found, problems = Checkpoints(place, keep=2).newest()
    assert found["step"] == 100
    assert (name, problems) == ("step_000000000100.pt", [])
    loaded = checkpoints.load("step_000000000100.pt")
    assert loaded["step"] == 100
    assert torch.equal(loaded["learner"]["weights"], torch.full((1000,), 100.0))


def test_nothing_is_there_at_first(place: str) -> None:
    assert Checkpoints(place, keep=2).newest() == (None, {}, [])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_one_cut_off_is_told_and_the_one_before_it_taken(place: str, share: float) -> None:
    checkpoints = written(place, 1, 2)
    newest = files.join(place, "step_000000000002.pt")
    whole = files.read(newest)
    files.write(newest, whole[: int(share * len(whole))])
    name, _, (problem,) = checkpoints.newest()
    assert name == "step_000000000001.pt"
    assert "step_000000000002.pt" in problem
    assert "\n" not in problem


def test_one_with_a_flipped_bit_is_told_too(place: str) -> None:
    checkpoints = written(place, 1, 2)
    newest = files.join(place, "step_000000000002.pt")
    whole = bytearray(files.read(newest))
    whole[len(whole) // 2] ^= 1
    files.write(newest, bytes(whole))
    name, _, problems = checkpoints.newest()
    assert name == "step_000000000001.pt"
    assert len(problems) == 1


def test_what_is_newer_than_the_one_taken_goes(place: str) -> None:
    checkpoints = written(place, 1, 2)
    newest = files.join(place, "step_000000000002.pt")
    files.write(newest, files.read(newest)[:100])
    files.write(files.join(place, ".step_000000000003.pt.77.partial"), b"a killed writer's")
    files.write(files.join(place, "step_000000000004.pt.1a2b3c4d.tmp"), b"another's, where a store renames")
    name = checkpoints.newest().name
    checkpoints.remove_newer(name)
    assert files.names(place) == ["step_000000000001.pt"]
    checkpoints.remove_newer(None)
    assert files.names(place) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 16 KiB."""
    with small_disk(tmp_path / "disk", "16k") as place:
        yield place


def test_a_full_disk_costs_that_checkpoint_and_no_other(full_disk: Path) -> None:
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


def test_a_write_that_failed_is_told_at_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=2)
    checkpoints.save(1, saved(1))
    with pytest.raises(StoreError, match="cannot write the checkpoint"):
        checkpoints.save(2, saved(2))
