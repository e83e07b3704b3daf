"""`Run`: a finished run as tables, compared with its artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator import Run
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.errors import UserError
from orchestrator.selection import final_keep_list
from orchestrator.selection.wfpp import read_scores


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run(tiny_run / "OUT")


@pytest.mark.slow
def test_pairs_has_every_pair_in_order_with_its_score_and_decision(run: Run) -> None:
    record, pairs = run.record, run.pairs.collect()
    assert len(pairs) == 96
    assert pairs["key"].to_list() == sorted(pairs["key"].to_list())
    assert pairs.group_by("part", maintain_order=True).agg(pl.col("row").max() + 1)["row"].to_list() == [32, 32, 32]
    keep = final_keep_list(record)
    assert keep is not None
    masks = [KeepList(keep).mask(index, 32) for index in range(3)]
    assert pairs["kept"].to_list() == np.concatenate(masks).tolist()
    assert pairs["kept"].sum() == KeepList(keep).num_pairs < 96
    (scored,) = record.of_kind("scores")
    scores = np.concatenate([read_scores(scored, index) for index in range(3)])
    assert pairs["score"].drop_nulls().to_list() == scores.tolist()
    # WFPP keeps the highest scores
    assert pairs.filter("kept")["score"].min() >= pairs.filter(~pl.col("kept"))["score"].max()


@pytest.mark.slow
def test_a_query_gives_the_same_rows_as_the_whole_table(run: Run) -> None:
    whole = run.pairs.collect()
    assert run.pairs.select("row", "key").collect().equals(whole.select("row", "key"))
    assert run.pairs.head(40).collect().equals(whole.head(40))
    assert run.pairs.filter("kept").select("caption").collect().equals(whole.filter("kept").select("caption"))
    assert run.pairs.filter("kept").head(5).select("key").collect().equals(whole.filter("kept").head(5).select("key"))
    assert run.pairs.select(pl.len()).collect().item() == 96
    means = [table.group_by("part").agg(pl.col("score").mean()).sort("part") for table in (run.pairs, whole.lazy())]
    assert_frame_equal(*(mean.collect() for mean in means))


@pytest.mark.slow
def test_scores_are_not_read_for_a_query_without_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.selection.wfpp.read_scores", lambda *_: pytest.fail("scores were read"))
    assert run.pairs.select("caption").collect().height == 96


@pytest.mark.slow
def test_words_and_curves_agree_with_the_report(run: Run, tiny_run: Path) -> None:
    report = json.loads((tiny_run / "OUT" / "report.json").read_text())
    before, after = (run.words(when).collect() for when in ("before", "after"))
    assert before["count"].sum() == report["words"]["before"]["occurrences"]
    assert after["count"].sum() == report["words"]["after"]["occurrences"]
    curve = run.curve("pretrain")
    assert curve["step"].to_list() == list(range(1, report["training"]["pretrain"]["steps"] + 1))
    assert curve["loss"][-1] == pytest.approx(report["training"]["pretrain"]["loss"])
    assert run.funnel["pairs"].to_list() == [row["pairs"] for row in report["funnel"]]
    top1 = run.evaluation.filter(phase="pretrain", set="zero_shot", metric="top1")["value"].item()
    assert top1 == report["evaluation"]["pretrain"]["zero_shot"]["top1"]
    assert run.stages["name"].to_list() == [stage["name"] for stage in report["stages"]]


@pytest.mark.slow
def test_a_missing_run_or_phase_is_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run at"):
        _ = Run(tmp_path).pairs
    with pytest.raises(UserError, match="no phase 'warmup'; it has: pretrain, finetune"):
        run.curve("warmup")


@pytest.mark.slow
def test_images_are_read_from_any_folder_unless_the_source_has_changed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = run.pairs.head(3).collect()
    assert [image is not None for image in run.images(pairs)] == [True] * 3
    monkeypatch.setattr("orchestrator.source.WebDataset.identity", lambda _: {"shards": "others"})
    with pytest.raises(UserError, match=r"has changed since .* was made"):
        run.images(pairs)


def finished(folder: Path, *stages: StageRecord) -> Run:
    """A run that consists of its record alone."""
    rest: dict[str, Any] = {"name": "n", "config": {}, "versions": {}, "started": "", "wall_seconds": 1.0}
    RunRecord(verb="run", stages=list(stages), **rest).write(str(folder))
    return Run(folder)


def test_a_curve_has_metrics_that_begin_late(tmp_path: Path) -> None:
    steps = [{"step": step, "loss": 1.0} | ({"zero_shot/top1": 0.5} if step == 150 else {}) for step in range(1, 151)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    made: dict[str, Any] = {"uri": str(tmp_path), "made_from": {}, "reused": False, "seconds": 1.0}
    curve = finished(tmp_path, StageRecord(name="pretrain", role=Role.PRETRAIN, kind="pretrain", **made)).curve()
    assert curve["zero_shot/top1"].to_list() == [None] * 149 + [0.5]


def test_benchmark_tasks_are_evaluation_sets(tmp_path: Path) -> None:
    row = {"key": "cars", "name": "Cars", "group": None, "metric": "acc1", "value": 0.5, "num_images": 9, "skipped": 0}
    averages = [{"name": "all tasks", "value": 0.5, "measured": 1, "of": 1}]
    table = {"results": [row | {"metrics": {"acc1": 0.5, "acc5": 0.9}}], "skipped": [], "averages": averages}
    report: dict[str, Any] = {"name": "n", "verb": "run", "started": "", "wall_seconds": 1.0, "config": {}}
    report |= {"stages": [], "fingerprints": {}, "versions": {}}
    (tmp_path / "report.json").write_text(json.dumps(report | {"tasks": {"pretrain": table}}))
    assert Run(tmp_path).evaluation.rows() == [
        ("pretrain", "tasks/cars", "acc1", 0.5),
        ("pretrain", "tasks/cars", "acc5", 0.9),
        ("pretrain", "tasks", "all tasks", 0.5),
    ]


def test_importing_the_package_does_not_load_polars() -> None:
    program = "import sys, orchestrator; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
