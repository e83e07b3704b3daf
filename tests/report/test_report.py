"""Content of report.json after `run`, `select` and `evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import role_and_step
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.report.schema import Report
from orchestrator.report.selected import SelectedStep, num_captionless
from orchestrator.report.trained import cost
from orchestrator.report.write import build_report, headline, write_report
from orchestrator.selection.wfpp import read_scores
from tests.support.report_runs import CAPTIONS, LOGGED_STEPS, TORN, evaluation_record, phase_record, select

NUM_PAIRS = len(CAPTIONS)


def written(record: RunRecord, out: Path) -> Report:
    """Write the report and read it back."""
    write_report(str(out), record)
    return Report.model_validate_json((out / "report.json").read_text())


def test_select_counts_every_step(selected: RunRecord, tmp_path: Path) -> None:
    report = written(selected, tmp_path)
    assert [(row.name, row.pairs) for row in report.funnel] == [
        ("source", NUM_PAIRS),
        ("pool", NUM_PAIRS),
        ("wfpp", NUM_PAIRS // 2),
    ]
    step = report.steps[0]
    assert step.method == "wfpp"
    assert (step.pairs_in, step.budget, step.pairs_out) == (NUM_PAIRS, NUM_PAIRS // 2, NUM_PAIRS // 2)
    assert report.captionless == step.no_words == 1
    assert report.skipped.catalog is not None
    assert report.skipped.catalog.problems == {"missing_caption": 1}
    assert report.training == {}
    assert report.cost is None


def test_threshold_is_the_lowest_score_kept(selected: RunRecord) -> None:
    scored, keep = selected.of_kind("scores")[0], KeepList(selected.of_kind("keep")[-1])
    rows = [part["rows"] for part in keep.artifact.parts]
    kept = [read_scores(scored, index)[keep.mask(index, num_rows)] for index, num_rows in enumerate(rows)]
    assert build_report(selected).steps[0].threshold == np.concatenate(kept).min()


def test_examples_are_on_their_side_of_the_threshold(selected: RunRecord) -> None:
    report = build_report(selected)
    assert report.examples is not None
    threshold, keep = report.steps[0].threshold or 0.0, KeepList(selected.of_kind("keep")[-1])
    assert threshold > 0
    rows = [part["rows"] for part in keep.artifact.parts]
    assert [group.name for group in report.examples.groups] == ["highest", "above", "below", "lowest"]
    for group in report.examples.groups:
        scores = [pair.score for pair in group.pairs if pair.score is not None]
        assert all(score >= threshold if group.kept else score <= threshold for score in scores)
        assert scores == sorted(scores, reverse=group.name in ("highest", "below"))
        assert len({pair.caption for pair in group.pairs}) == len(scores) == len(group.pairs) > 0
        for pair in group.pairs:
            assert keep.mask(pair.part, rows[pair.part])[pair.row] == group.kept
            assert pair.caption == CAPTIONS[int(pair.key)]


def test_run_compares_samples_seen_with_full_training(trained: RunRecord, tmp_path: Path) -> None:
    report = written(trained, tmp_path)
    assert report.cost is not None
    kept = NUM_PAIRS // 2
    assert report.cost.samples_seen == 10 * kept + 33
    assert report.cost.full_samples == 10 * NUM_PAIRS
    assert report.cost.samples_fraction == pytest.approx((10 * kept + 33) / (10 * NUM_PAIRS))
    assert report.cost.paper_fraction == pytest.approx(0.5 + 33 / NUM_PAIRS / 10)
    assert report.cost.training_seconds == 120.0
    assert list(report.training) == list(report.evaluation) == ["pretrain", "finetune"]
    assert report.skipped.training["finetune"].skipped == 1
    assert report.skipped.evaluation == {"pretrain": 3, "finetune": 3}


@pytest.mark.parametrize(
    ("after", "captioned", "captionless", "full", "paper"),
    [
        (None, 990, 10, 9900, 0.3 + 1 / 10),
        ("pool", 990, 10, 9900, 0.3 + 1 / 10),
        # the captions of dropped pairs have not been counted
        ("semdedup", 620, None, 10_000, 0.3 + 0.62 / 10),
    ],
)
def test_cost_of_fine_tuning_on_a_part_of_the_pairs(
    after: str | None, captioned: int, captionless: int | None, full: int, paper: float, tmp_path: Path
) -> None:
    keeps = {"pool": 1000, "semdedup": 630, "dbp": 300, "captioned": captioned}
    made: dict[str, Artifact] = {}
    for name, kept in keeps.items():
        among = {"among": made[after]} if name == "captioned" and after else {}
        made[name] = Artifact.of(str(tmp_path), "keep", version=1, name=name, **among)
        made[name].publish(totals={"kept": kept}, parts=[], seconds=1.0)
    phases = [phase_record(str(tmp_path), "pretrain", 300, 10), phase_record(str(tmp_path), "finetune", captioned, 1)]
    stages = [record_of(name, artifact) for name, artifact in made.items()] + phases
    record = RunRecord(name="n", verb="run", config={}, stages=stages, versions={}, started="", wall_seconds=1.0)
    step = partial(SelectedStep, settings={}, catalog=Catalog(made["pool"]), scored=None, assigned=None)
    steps = [
        step("semdedup", incoming=made["pool"], outgoing=made["semdedup"]),
        step("dbp", incoming=made["semdedup"], outgoing=made["dbp"]),
    ]
    assert num_captionless(record, steps) == captionless
    found = cost(record, steps)
    assert found is not None
    assert (found.samples_seen, found.full_samples) == (3000 + captioned, full)
    assert found.samples_fraction == (3000 + captioned) / full
    assert found.paper_fraction == pytest.approx(paper)


def record_of(name: str, artifact: Artifact) -> StageRecord:
    role, step = role_and_step(artifact.kind, name)
    return StageRecord(
        name=name,
        role=role,
        step=step,
        kind=artifact.kind,
        uri=artifact.uri,
        made_from=artifact.made_from,
        reused=True,
        seconds=0.0,
    )


def test_curves_have_few_points_and_include_the_last_step(trained: RunRecord) -> None:
    curve = build_report(trained).training["pretrain"].curve
    assert len(curve) == 500
    assert [curve[0].step, curve[-1].step] == [1, LOGGED_STEPS]


def test_headline_of_each_verb(selected: RunRecord, trained: RunRecord, tmp_path: Path) -> None:
    write_report(str(tmp_path), selected)
    assert dict(headline(str(tmp_path)))["kept"] == f"50.0% ({NUM_PAIRS // 2:,} of {NUM_PAIRS:,} pairs)"
    write_report(str(tmp_path), trained)
    rows = headline(str(tmp_path))
    assert 2 <= len(rows) <= 5
    assert dict(rows)["zero-shot top-1"] == "4.0% (chance 0.50%)"


def test_evaluate_alone(selected: RunRecord, tmp_path: Path) -> None:
    stages = [evaluation_record(str(tmp_path), ("checkpoint",))]
    record = selected.model_copy(update={"verb": "evaluate", "stages": stages})
    report = written(record, tmp_path)
    assert report.funnel == report.steps == []
    assert report.words is None
    assert report.evaluation["checkpoint"].zero_shot is not None
    assert dict(headline(str(tmp_path)))["image to text R@1"] == "25.0% (400 pairs)"


def test_caption_table_shows_captions_only(ray_cluster: str, tmp_path: Path) -> None:
    pl.DataFrame({"caption": CAPTIONS}).write_parquet(tmp_path / "captions.parquet")
    source = {"format": "table", "uri": str(tmp_path / "captions.parquet")}
    record = select(source, {"steps": ["wfpp"], "wfpp": {}}, tmp_path)
    report, page = written(record, tmp_path), (tmp_path / "report.html").read_text()
    assert report.funnel[1].what == "rows in the table"
    assert "caption table without images" in page
    assert "<img" not in page


def test_random_then_wfpp_then_all(ray_cluster: str, pool_folder: Path, tmp_path: Path) -> None:
    settings = {
        "steps": ["random", "wfpp", "all"],
        "random": {"keep_fraction": 0.9},
        "wfpp": {"keep_fraction": 0.5},
        "all": {},
    }
    record = select({"format": "webdataset", "uri": str(pool_folder / "*.tar")}, settings, tmp_path)
    report = build_report(record)
    drawn = int(NUM_PAIRS * 0.9)
    assert [(step.name, step.pairs_in, step.pairs_out) for step in report.steps] == [
        ("random", NUM_PAIRS, drawn),
        ("wfpp", drawn, drawn // 2),
        ("all", drawn // 2, drawn // 2),
    ]
    assert [step.threshold is None for step in report.steps] == [True, False, True]
    assert report.examples is not None
    assert report.examples.step == "wfpp"
    assert report.words is not None
    assert report.words.before.occurrences > report.words.after.occurrences


def test_random_alone_draws_its_examples(ray_cluster: str, pool_folder: Path, tmp_path: Path) -> None:
    record = select(
        {"format": "webdataset", "uri": str(pool_folder / "*.tar")},
        {"steps": ["random"], "random": {"keep_fraction": 0.5}},
        tmp_path,
    )
    report = build_report(record)
    assert report.examples is not None
    assert [(group.name, group.kept) for group in report.examples.groups] == [("kept", True), ("pruned", False)]
    assert all(pair.score is None for group in report.examples.groups for pair in group.pairs)


def test_no_pruning_has_no_examples(ray_cluster: str, pool_folder: Path, tmp_path: Path) -> None:
    source = {"format": "webdataset", "uri": str(pool_folder / "*.tar")}
    record = select(source, {"steps": ["all"], "all": {}}, tmp_path)
    report = written(record, tmp_path)
    assert report.examples is None
    assert report.steps[0].pairs_in == report.steps[0].pairs_out == NUM_PAIRS


def test_undecodable_image_is_a_placeholder(selected: RunRecord, tmp_path: Path) -> None:
    write_report(str(tmp_path), selected)
    page = (tmp_path / "report.html").read_text()
    assert str(CAPTIONS[TORN]) in page
    assert "no image: undecodable" in page


def test_page_without_a_usable_source_gives_the_reason(ray_cluster: str, pool_folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "pool"
    copied.mkdir()
    (copied / "0.tar").write_bytes((pool_folder / "00001.tar").read_bytes())
    record = select({"format": "webdataset", "uri": str(copied / "0.tar")}, {"steps": ["wfpp"], "wfpp": {}}, tmp_path)
    (copied / "0.tar").write_bytes((pool_folder / "00000.tar").read_bytes())
    write_report(str(tmp_path), record)
    assert "changed after its catalog was made" in (tmp_path / "report.html").read_text()
    (copied / "0.tar").unlink()
    write_report(str(tmp_path), record)
    assert "can no longer be read" in (tmp_path / "report.html").read_text()
