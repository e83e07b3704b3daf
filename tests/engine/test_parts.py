"""Parts: each one is computed once and written atomically, the manifest last; two builders at once do no harm."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from orchestrator.engine import stopwatch
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.log import run_log
from orchestrator.engine.parts import (
    InRuns,
    PartResult,
    PartsJob,
    RunWork,
    Work,
    done_summaries,
    num_done,
    part_path,
    sums,
)
from orchestrator.errors import UserError
from orchestrator.storage import files

pytestmark = pytest.mark.usefixtures("ray_cluster")
# the workers cannot import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Calls:
    """Work that creates a file in every call, and fails for the items in `broken`."""

    def __init__(self, folder: Path, broken: set[int] = frozenset(), pause: float = 0.0):  # type: ignore[assignment]
        self.folder, self.broken, self.pause = folder, broken, pause
        folder.mkdir(exist_ok=True)

    def __call__(self) -> Work:
        # a new worker creates a file as well
        (self.folder / f"made-{uuid.uuid4().hex}").touch()

        def work(item: int) -> PartResult:
            (self.folder / f"item-{item}-{uuid.uuid4().hex}").touch()
            time.sleep(self.pause)
            if item in self.broken:
                raise UserError(f"item {item} is broken")
            return PartResult(
                {"txt": str(item).encode() * 1000}, {"rows": int(item), "kinds": {"even": int(item % 2 == 0)}}
            )

        return work

    def items(self) -> list[int]:
        """The items of all calls, sorted."""
        return sorted(int(path.name.split("-")[1]) for path in self.folder.glob("item-*"))

    def num_made(self) -> int:
        """The number of workers."""
        return len(list(self.folder.glob("made-*")))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact.of(str(tmp_path / "store"), "numbers", version=1)


def build(artifact: Artifact, calls: Callable[[], Work] | InRuns, num_items: int = 6, **options: Any) -> Artifact:
    return PartsJob(artifact, range(num_items), calls, name="numbers", **options).build(Display())


@pytest.mark.parametrize("num_actors", [None, 2])
def test_every_item_is_computed_once(artifact: Artifact, tmp_path: Path, num_actors: int | None) -> None:
    calls = Calls(tmp_path / "calls")
    build(artifact, calls, num_actors=num_actors)
    assert calls.items() == list(range(6))
    assert num_actors is None or 1 <= calls.num_made() <= num_actors
    assert artifact.totals == {"rows": 15, "kinds": {"even": 3}}
    assert [part["rows"] for part in artifact.parts] == list(range(6))
    assert [files.read(part_path(artifact, i, "txt")) for i in range(6)] == [str(i).encode() * 1000 for i in range(6)]
    assert not list(Path(artifact.uri).rglob("*.tmp"))


def test_a_failed_item_leaves_no_manifest_and_the_next_build_resumes(artifact: Artifact, tmp_path: Path) -> None:
    calls = Calls(tmp_path / "calls", broken={3})
    with pytest.raises(Exception, match="item 3 is broken") as error:
        build(artifact, calls)
    assert isinstance(getattr(error.value, "cause", error.value), UserError) or "UserError" in str(error.value)
    assert not artifact.is_complete()
    done = set(done_summaries(artifact))
    assert 3 not in done
    assert num_done(artifact) == len(done)
    before = {path: path.stat().st_mtime_ns for path in Path(artifact.path("parts")).iterdir()}
    again = Calls(tmp_path / "again")
    build(artifact, again)
    assert again.items() == sorted(set(range(6)) - done)
    assert artifact.totals["rows"] == 15
    after = {path: path.stat().st_mtime_ns for path in before if int(path.name.split(".")[0]) in done}
    assert after == {path: before[path] for path in after}


class Runs(Calls):
    """The same work on runs of items. Each run creates a file with the numbers of its items."""

    def make(self) -> RunWork:
        work = super().__call__()

        def on_run(items: Sequence[int]) -> Iterator[PartResult]:
            (self.folder / f"run-{'-'.join(map(str, items))}").touch()
            return map(work, items)

        return on_run

    def runs(self) -> set[tuple[int, ...]]:
        """The runs of all calls."""
        return {tuple(map(int, path.name.split("-")[1:])) for path in self.folder.glob("run-*")}


def test_a_run_holds_missing_neighbours_only(artifact: Artifact, tmp_path: Path) -> None:
    shares = [0.4, 0.6, 0.1, 2.0, 0.5, 0.5, 0.0, 0.1, 1.0, 0.3, 0.3, 0.3]
    calls = Runs(tmp_path / "calls", broken={5})
    with pytest.raises(Exception, match="item 5 is broken"):
        build(artifact, InRuns(calls.make, shares.__getitem__), len(shares))
    done = set(done_summaries(artifact))
    assert 5 not in done
    assert calls.runs() <= {(0, 1), (2,), (3,), (4, 5, 6), (7,), (8,), (9, 10, 11)}
    for index in sorted(done - {4, 9}):
        Path(part_path(artifact, index, "json")).unlink()
    Path(part_path(artifact, 4, "json")).write_text('{"index": 4, "rows": 4}')
    Path(part_path(artifact, 9, "json")).write_text('{"index": 9, "rows": 9}')
    again = Runs(tmp_path / "again")
    build(artifact, InRuns(again.make, shares.__getitem__), len(shares))
    assert again.runs() == {(0, 1), (2,), (3,), (5, 6, 7), (8,), (10, 11)}
    assert again.items() == sorted(set(range(12)) - {4, 9})
    assert artifact.totals["rows"] == sum(range(12))
    assert [part["index"] for part in artifact.parts] == list(range(12))
    assert files.read(part_path(artifact, 6, "txt")) == b"6" * 1000


def test_a_file_without_its_summary_does_not_count(artifact: Artifact, tmp_path: Path) -> None:
    build(artifact, Calls(tmp_path / "first"))
    Path(artifact.path("manifest.json")).unlink()
    Path(part_path(artifact, 2, "json")).unlink()
    Path(part_path(artifact, 2, "txt")).write_bytes(b"half")
    calls = Calls(tmp_path / "calls")
    build(artifact, calls)
    assert calls.items() == [2]
    assert files.read(part_path(artifact, 2, "txt")) == b"2" * 1000


def test_a_failed_check_leaves_the_parts_without_a_manifest(artifact: Artifact, tmp_path: Path) -> None:
    def refuse(summaries: list[dict[str, Any]]) -> None:
        raise UserError(f"{len(summaries)} parts are too many")

    with pytest.raises(UserError, match="6 parts are too many"):
        build(artifact, Calls(tmp_path / "calls"), check=refuse)
    assert not artifact.is_complete()
    calls = Calls(tmp_path / "again")
    build(artifact, calls)
    assert calls.items() == []
    assert artifact.is_complete()


def test_an_interrupted_stage_adds_up_the_seconds_of_its_builds(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(summaries: list[dict[str, Any]]) -> None:
        raise UserError("interrupted")

    monkeypatch.setattr(stopwatch, "NOTE_SECONDS", 0.0)
    with pytest.raises(UserError, match="interrupted"):
        build(artifact, Calls(tmp_path / "calls", pause=0.2), check=refuse)
    saved = files.read_json(artifact.path("elapsed.json"))["seconds"]
    assert saved >= 0.2
    began = time.monotonic()
    build(artifact, Calls(tmp_path / "again"))
    took = time.monotonic() - began
    assert saved <= artifact.manifest["seconds"] <= saved + took + 0.01
    assert not files.exists(artifact.path("elapsed.json"))


def test_two_builders_at_once_do_no_harm(artifact: Artifact, tmp_path: Path) -> None:
    calls, failures = Calls(tmp_path / "calls", pause=0.05), []

    def one() -> None:
        try:
            build(artifact, calls, 8)
        except Exception as error:  # noqa: BLE001 a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(calls.items()) == set(range(8))
    manifest = json.loads(Path(artifact.path("manifest.json")).read_text())
    assert manifest["totals"]["rows"] == sum(range(8))
    assert [files.read(part_path(artifact, i, "txt")) for i in range(8)] == [str(i).encode() * 1000 for i in range(8)]
    assert not list(Path(artifact.uri).rglob("*.tmp"))


@pytest.mark.parametrize("num_actors", [None, 2])
def test_warnings_of_workers_reach_the_log_of_the_run(
    artifact: Artifact, tmp_path: Path, num_actors: int | None
) -> None:
    def make_work() -> Work:
        def work(item: int) -> PartResult:
            logging.getLogger("orchestrator.test").warning("item %d is read again", item)
            return PartResult({}, {"rows": 1})

        return work

    with run_log(str(tmp_path / "out")):
        PartsJob(artifact, [0, 1, 2], make_work, name="numbers", num_actors=num_actors).build(Display())
    text = (tmp_path / "out" / "run.log").read_text()
    for item in range(3):
        assert text.count(f"WARNING orchestrator.test: item {item} is read again") == 1


def test_sums_add_numbers_and_counts_by_key() -> None:
    summaries = [
        {"index": 0, "rows": 2, "kinds": {"a": 1}, "examples": ["x"]},
        {"index": 1, "rows": 3, "kinds": {"a": 1, "b": 4}},
    ]
    assert sums(summaries) == {"rows": 5, "kinds": {"a": 2, "b": 4}}
