"""The table and the summary of a sweep, against numbers computed by hand and a slow, simple Pareto front."""

from __future__ import annotations

import io
import random
from statistics import mean, stdev

import polars as pl
import pytest

from orchestrator.sweep.report.summary import (
    best_setting,
    cost_rows,
    headlines,
    metrics_shown,
    pareto,
    settings_of,
    short_names,
)
from orchestrator.sweep.report.trial_table import parquet, rows
from tests.support.sweep_reports import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    TOP1,
    TOP5,
    control_trials,
    failed,
    grid_trials,
    report_of,
    trial,
    whole_report,
)


def test_a_row_for_each_trial_and_model() -> None:
    report = whole_report()
    table = rows(report)
    # 18 of the grid and 12 controls with two models, two trials with none
    assert len(table) == 30 * 2 + 2
    assert len({tuple(row) for row in table}) == 1
    row = next(row for row in table if row["trial"] == "keep_fraction-0.5_k-64_seed-2" and row["model"] == "finetune")
    assert row["keep_fraction"] == 0.5
    assert row["selection.clustering.k"] == 64
    assert (row["pairs"], row["kept_fraction"], row["samples_seen"]) == (5000, 0.5, 60_000)
    assert row["pruning_core_hours"] == pytest.approx(120 * 16 / 3600)
    assert row["training_gpu_hours"] == pytest.approx(600 * 2 / 3600)
    assert row[TOP1] == pytest.approx(0.15 + 0.06 + 0.0128 + 0.006 + 0.02)
    assert [row["model"] for row in table if row["trial"] == "broken"] == [None]
    assert next(row for row in table if row["trial"] == "broken")["reason"] == "TrainingError: loss is not finite"


def test_the_parquet_file_holds_the_rows() -> None:
    report = whole_report()
    assert pl.read_parquet(io.BytesIO(parquet(report))).to_dicts() == rows(report)


def test_on_cores_the_column_names_core_hours() -> None:
    row = rows(report_of([trial("one", 0.3, 0.5)], device="core", devices=4))[0]
    assert row["training_core_hours"] == pytest.approx(500 * 4 / 3600)


def test_lists_are_joined_and_mixed_values_become_text_in_parquet() -> None:
    dimensions = {"selection.steps": [["semdedup", "dbp"], ["wfpp"]], "selection.wfpp.t": [1e-7, "auto"], "on": [True]}
    settings = {"selection.steps": ["semdedup", "dbp"], "selection.wfpp.t": 1e-7, "on": True}
    others = {"selection.steps": ["wfpp"], "selection.wfpp.t": "auto", "on": True}
    trials = [trial("a", 0.3, 0.5, settings=settings), trial("b", 0.3, 0.5, settings=others)]
    report = report_of(trials, dimensions=dimensions)
    assert rows(report)[0]["selection.steps"] == "semdedup, dbp"
    read = pl.read_parquet(io.BytesIO(parquet(report)))
    assert read["selection.wfpp.t"].to_list() == ["1e-07", "1e-07", "auto", "auto"]
    assert read["on"].to_list() == [True] * 4


@pytest.mark.parametrize("trials", [[], [failed("a", "x")]])
def test_without_a_model_the_file_has_the_same_columns(trials: list) -> None:
    read = pl.read_parquet(io.BytesIO(parquet(report_of(trials))))
    assert read.height == len(trials)
    assert {"trial", "keep_fraction", "training_gpu_hours"} <= set(read.columns)


def test_settings_are_means_over_seeds() -> None:
    settings = settings_of(whole_report())
    assert [setting.control for setting in settings] == ["full", *["random"] * 3, *[None] * 6]
    assert [setting.num_seeds for setting in settings] == [3] * 10
    assert [setting.kept_fraction for setting in settings] == [1, 0.25, 0.5, 0.75, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert settings[4].label == "keep_fraction 0.25, k 16"
    assert settings[4].series == "k 16"
    values = [0.15 + 0.03 + 0.0032 + step * 1.25 for step in (-0.004, 0, 0.004)]
    found = settings[4].models["pretrain"].metrics[TOP1]
    assert found.mean == pytest.approx(mean(values)) == pytest.approx(0.1832)
    assert found.std == pytest.approx(stdev(values)) == pytest.approx(0.005)
    # 120 s for which two GPUs wait, then (25,000 + 10,000) samples at 100 a second
    assert settings[4].pruning_hours.mean == pytest.approx(240 / 3600)
    assert settings[4].models["finetune"].hours.mean == pytest.approx((240 + 2 * 350) / 3600)
    assert settings[4].models["finetune"].hours.std == 0


def test_a_single_seed_has_no_deviation_and_unfinished_trials_do_not_count() -> None:
    broken = failed("broken", "x").model_copy(update={"models": trial("x", 0.9, 0.5).models})
    (setting,) = settings_of(report_of([trial("a", 0.3, 0.5), broken]))
    assert setting.num_seeds == 1
    assert setting.models["pretrain"].metrics[TOP1].std is None
    assert setting.models["pretrain"].metrics[TOP1].mean == 0.3


def test_numbers_that_are_not_finite_are_not_measured() -> None:
    found = trial("a", float("nan"), 0.5)
    (setting,) = settings_of(report_of([found]))
    assert setting.models["pretrain"].metrics == {}


def test_random_controls_of_nearly_one_size_are_one_setting() -> None:
    sizes = [(0.2500, 0), (0.2504, 1), (0.2498, 2), (0.5, 0), (0.5, 1)]
    trials = [trial(f"r{kept}-{seed}", 0.2, kept, seed, control="random") for kept, seed in sizes]
    settings = settings_of(report_of(trials))
    assert [setting.num_seeds for setting in settings] == [3, 2]
    assert [setting.pairs for setting in settings] == [pytest.approx(7502 / 3), 5000]


def test_two_random_controls_of_one_seed_are_two_settings() -> None:
    trials = [trial(f"r{kept}", 0.2, kept, control="random") for kept in (0.25, 0.2501)]
    assert [setting.num_seeds for setting in settings_of(report_of(trials))] == [1, 1]


def test_pareto_agrees_with_comparing_all_pairs_of_points() -> None:
    draw = random.Random(3)
    for _ in range(300):
        points = [(draw.randint(0, 6), draw.randint(0, 6)) for _ in range(draw.randint(0, 12))]
        kept = [
            index
            for index, (cost, metric) in enumerate(points)
            if not any(c <= cost and m >= metric and (c, m) != (cost, metric) for c, m in points)
        ]
        found = pareto(points)
        assert sorted(found) == kept
        assert [points[index] for index in found] == sorted(points[index] for index in found)


def test_cost_against_the_full_control() -> None:
    rows_of = cost_rows(settings_of(whole_report()))
    full, quarter = rows_of[0], rows_of[4]
    assert full.full == pytest.approx(1100 * 2 / 3600)
    assert quarter.share == pytest.approx((120 + 350) / 1100)
    assert quarter.saved == pytest.approx((1100 - 350) * 2 / 3600)
    assert cost_rows(settings_of(report_of(grid_trials())))[0].share is None


def test_a_full_control_without_a_fine_tune_epoch_is_still_compared() -> None:
    full = trial("full", 0.3, 1.0, control="full", pruning_seconds=0, finetune=False)
    found = cost_rows(settings_of(report_of([full, *grid_trials()])))
    assert found[1].share == pytest.approx((120 + 350) / 1000)


def test_on_cores_pruning_counts_all_of_them() -> None:
    report = report_of([trial("a", 0.3, 0.5)], device="core", devices=2)
    assert settings_of(report)[0].pruning_hours.mean == pytest.approx(120 * 16 / 3600)


def test_the_best_is_a_control_only_if_there_is_nothing_else() -> None:
    strong = trial("full", 0.9, 1.0, control="full")
    report = report_of([*grid_trials(), strong])
    best = best_setting(report, settings_of(report))
    assert best is not None
    assert best.settings == {"keep_fraction": 0.75, "selection.clustering.k": 64}
    alone = report_of([strong])
    assert best_setting(alone, settings_of(alone)).control == "full"  # type: ignore[union-attr]
    assert best_setting(report_of([]), []) is None


def test_headlines() -> None:
    found = {row.label: (row.value, row.note) for row in headlines(whole_report())}
    assert found["zero-shot top-1"][0] == "27.3%"
    assert found["of the full cost"] == ("88%", "+0.5 points against full training")
    assert found["trials finished"] == ("30 of 32", "1 stopped, 1 failed")
    assert found["stages computed"][0] == "13 of 96"
    assert [row.label for row in headlines(report_of([], sharing=[]))] == ["trials finished", "wall time"]


def test_the_metrics_shown_are_the_measured_ones() -> None:
    report = whole_report()
    assert metrics_shown(report, settings_of(report)) == [TOP1, TOP5, TEXT_TO_IMAGE, IMAGE_TO_TEXT]
    assert metrics_shown(report, settings_of(report_of(control_trials()[:0]))) == []


def test_short_names_are_unique() -> None:
    names = ["keep_fraction", "selection.dbp.k", "selection.ssp.k", "training.lr", "lr"]
    assert list(short_names(names).values()) == ["keep_fraction", "dbp.k", "ssp.k", "training.lr", "lr"]
