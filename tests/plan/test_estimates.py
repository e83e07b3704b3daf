"""Estimates of a run from the measurements of a probe: examples calculated by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.config import PlanConfig, TableSource
from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.metering import Cost
from orchestrator.engine.parts import part_path
from orchestrator.engine.role import role_and_step
from orchestrator.engine.stage import CostScaling, PairFlow, Size, Stage, by_groups, by_part
from orchestrator.errors import UserError
from orchestrator.plan import cost_table
from orchestrator.plan.estimates import Estimate, Estimates
from orchestrator.plan.measurements import ForwardPass, MeasuredPhase, MeasuredStage, Measurements, SetSize
from orchestrator.plan.rows import Reach, check_budgets, reaches
from orchestrator.selection.word_counts import count_stage, words_stage
from orchestrator.source import open_source
from orchestrator.storage import files

HOUR = 3600
GB = 10**9
NUM_PARTS = 100
FLOW = {field.name for field in fields(PairFlow)}


def stage(name: str, kind: str = "scores", at: Path = Path("/nowhere"), **numbers: Any) -> Stage:
    artifact = Artifact.of(str(at), kind, version=1, name=name, towers=["image"])
    role, step = role_and_step(kind, name)
    flow = PairFlow(**{key: value for key, value in numbers.items() if key in FLOW})
    scaling = CostScaling(**{key: value for key, value in numbers.items() if key not in FLOW})
    return Stage(
        name=name,
        role=role,
        step=step,
        does="",
        artifact=artifact,
        build=lambda display: None,
        flow=flow,
        scaling=scaling,
    )


def reach(of: Stage, reached: int, samples: int | None = None) -> Reach:
    return Reach(stage=of, reached=reached, left=reached, mark="", samples=samples)


def measured(cost: Cost, pairs: int = 1000, **changes: Any) -> MeasuredStage:
    return MeasuredStage(**{"cost": cost, "work": pairs, "stores": pairs, "holds": 0, "num_bytes": 5000} | changes)


CATALOG = stage("catalog", "catalog")
PROBE = Measurements(
    num_cores=10, node_cores=5, num_gpus=0, shares_cores=False, num_workers=4, num_pairs=1000, image_bytes=2e4
)


def estimates(probe: Measurements, *found: Reach) -> Estimates:
    return Estimates(probe, NUM_PARTS, found, CATALOG.artifact, batch_size=100, window=1000)


def estimate(probe: Measurements, one: Reach) -> Estimate:
    found = estimates(probe, one).by_stage[one.stage.name]
    assert found is not None
    return found


def test_hours_grow_with_the_pairs_and_share_the_cores() -> None:
    probe = replace(PROBE, stages={"score": measured(Cost(core_seconds=3.0, waiting_seconds=0.6, peak_bytes=7))})
    found = estimate(probe, reach(stage("score"), 1_000_000))
    assert found.core_hours == pytest.approx(3600 / HOUR), "3.6 s for a thousand pairs are an hour for a million"
    assert found.wall_hours == pytest.approx(0.1), "on ten cores"
    assert (found.memory_bytes, found.store_bytes) == (7, pytest.approx(5_000_000))
    shared = estimate(replace(probe, shares_cores=True), reach(stage("score"), 1_000_000))
    assert shared.core_hours == pytest.approx(3000 / HOUR), "a task that waits for a shared core does not hold it"


def test_the_catalog_grows_with_its_share_of_the_pool() -> None:
    probe = replace(
        PROBE, pool_bytes=400 * GB, stages={"catalog": measured(Cost(core_seconds=36.0), work=0.01, stores=0.01)}
    )
    found = estimate(probe, reach(CATALOG, 123))
    assert found.core_hours == pytest.approx(1.0)
    assert found.source_bytes == 400 * GB
    assert found.store_bytes == pytest.approx(500_000)


def test_clusters_count_as_work_as_memory_and_as_storage() -> None:
    real = stage("assign", work=lambda pairs: pairs * 500, holds=lambda pairs: min(pairs, 50_000), stores=lambda _: 500)
    probe = replace(
        PROBE,
        vector_bytes=3000,
        stages={"assign": measured(Cost(core_seconds=1.0, peak_bytes=10**8), work=1000 * 50, holds=1000, stores=50)},
    )
    found = estimate(probe, reach(real, 100_000))
    assert found.core_hours == pytest.approx(100 * 10 / HOUR), "a hundred times the pairs, ten times the clusters"
    assert found.memory_bytes == 10**8 + 49_000 * 3000
    assert found.store_bytes == 50_000


def test_stage_on_gpus_holds_all_of_them_and_reads_the_images() -> None:
    cost = Cost(core_seconds=8.0, gpu_seconds=2.0)
    probe = replace(PROBE, num_gpus=4, stages={"embed": measured(cost)})
    found = estimate(probe, reach(stage("embed", "embedding"), 1_800_000))
    assert found.core_hours == pytest.approx(3.0)
    assert found.wall_hours == pytest.approx(0.3), "the cores limit it"
    assert found.gpu_hours == pytest.approx(4 * 0.3), "held for longer than they are busy"
    assert found.source_bytes == 1_800_000 * 2e4


def test_one_task_does_not_spread_over_the_cluster() -> None:
    probe = replace(PROBE, num_gpus=4, stages={"train": measured(Cost(core_seconds=3.6))})
    found = estimate(probe, reach(stage("train", one_task=True), 1_000_000))
    assert found.wall_hours == pytest.approx(1 / 5), "the cores of one node"
    probe = replace(probe, stages={"train": measured(Cost(core_seconds=3.6, gpu_seconds=3.6))})
    found = estimate(probe, reach(stage("train", one_task=True), 1_000_000))
    assert (found.wall_hours, found.gpu_hours) == (pytest.approx(1), pytest.approx(1)), "one of the four GPUs"


def test_finished_parts_and_steps_are_not_estimated(tmp_path: Path) -> None:
    embed = stage("embed", "embedding", at=tmp_path)
    for part in range(NUM_PARTS // 4):
        files.write_json(part_path(embed.artifact, part, "json"), {})
    probe = replace(PROBE, stages={"embed": measured(Cost(core_seconds=3.6))})
    found = estimate(probe, reach(embed, 1_000_000))
    assert found.core_hours == pytest.approx(0.75)
    pretrain = stage("pretrain", "pretrain", at=tmp_path, epochs=1)
    files.write(pretrain.artifact.path("checkpoints", "step_000000000900.pt"), b"")
    phase = reach(pretrain, 100_000, samples=100_000)
    found = estimate(replace(PROBE, phases={"pretrain": trained()}), phase)
    assert found.wall_hours == pytest.approx(10_000 / 400 / HOUR), "900 steps of 100 samples are done"


def test_artifact_of_two_stages_is_estimated_once(tmp_path: Path) -> None:
    probe = replace(
        PROBE, stages={"before": measured(Cost(core_seconds=3.6)), "after": measured(Cost(core_seconds=3.6))}
    )
    before = stage("before", at=tmp_path)
    found = estimates(probe, reach(before, 1000), reach(replace(before, name="after"), 1000))
    assert list(found.by_stage) == ["before"]


def test_number_of_parts_limits_the_spread_of_a_stage() -> None:
    few = replace(PROBE, num_cores=1000, stages={"score": measured(Cost(core_seconds=3.6))})
    found = estimate(few, reach(stage("score"), 1_000_000))
    assert found.wall_hours == pytest.approx(1 / NUM_PARTS), "one part is one task"
    assert found.bound == "100 tasks"
    assert estimate(replace(few, num_cores=100), reach(stage("score"), 1_000_000)).bound == ""


def test_groups_and_buckets_bound_it_too() -> None:
    probe = replace(PROBE, num_cores=1000, stages={"count": measured(Cost(core_seconds=3.6))})

    def of(parts: int, num_tasks: Callable[[Size], int]) -> Estimate:
        one = reach(stage("count", "word_counts", num_tasks=num_tasks), 1_000_000)
        found = Estimates(probe, parts, [one], CATALOG.artifact, batch_size=1, window=1).by_stage["count"]
        assert found is not None
        return found

    assert of(10_000, by_groups(512)).wall_hours == pytest.approx(1 / 512)
    assert of(300, by_groups(512)).bound == "300 tasks"
    assert of(300, by_groups(512, 500_000)).bound == "2 tasks", "of half a million pairs"
    assert of(10_000, by_part).bound == ""
    shown = cost_table.cost_rows(
        Estimates(
            probe, 9, [one := reach(stage("count", num_tasks=by_part), 10)], CATALOG.artifact, batch_size=1, window=1
        ),
        [one],
        PlanConfig(),
    )
    assert shown[0][4] == "<1 s, 9 tasks"


def test_the_writer_bounds_many_gpus() -> None:
    cost = Cost(core_seconds=2.0, gpu_seconds=2.0)
    probe = replace(PROBE, num_gpus=100, stages={"embed": measured(cost, serial_seconds=0.1)})
    found = estimate(probe, reach(stage("embed", "embedding"), 1_800_000))
    assert found.wall_hours == pytest.approx(0.05), "one hour of GPUs, of which a hundred are there"
    assert (found.gpu_hours, found.bound) == (pytest.approx(5.0), "1 writer")


def test_stages_know_how_many_tasks_they_are() -> None:
    size = Size(pairs=10**9, pool=2 * 10**9, parts=200_000)
    catalog, valid = Catalog(CATALOG.artifact), CATALOG.artifact
    count = count_stage("/nowhere", catalog, valid, label="before")
    words = words_stage("/nowhere", catalog, count.artifact, min_count=1, label="before")
    assert (count.scaling.num_tasks(size), words.scaling.num_tasks(size)) == (512, 256)
    assert words.scaling.num_tasks(size._replace(pool=5_000_000)) == 3
    assert stage("any").scaling.num_tasks(size) == 2000


def test_nothing_to_scale_from_is_not_measured() -> None:
    probe = replace(PROBE, stages={"score": measured(Cost(core_seconds=3.6), work=0)})
    assert estimates(probe, reach(stage("score"), 10), reach(stage("join"), 10)).by_stage == {
        "score": None,
        "join": None,
    }


def trained(**changes: Any) -> MeasuredPhase:
    numbers = {"samples_per_second": 200.0, "num_workers": 2, "batch_share": 64, "full_share": 64}
    return MeasuredPhase(**numbers | {"peak_bytes": 9, "gpu_bytes": 0, "num_bytes": 6 * 10**8} | changes)


def test_training_by_samples_and_by_workers() -> None:
    phase = reach(stage("pretrain", "pretrain", epochs=32), 10_000, samples=1_440_000)
    found = estimate(replace(PROBE, phases={"pretrain": trained()}), phase)
    assert found.wall_hours == pytest.approx(1.0), "twice the workers are twice as fast"
    assert (found.core_hours, found.gpu_hours) == (pytest.approx(10.0), 0)
    on_gpus = estimate(replace(PROBE, num_gpus=4, phases={"pretrain": trained(gpu_bytes=10**10)}), phase)
    assert (on_gpus.core_hours, on_gpus.gpu_hours) == (0, pytest.approx(4.0))
    assert on_gpus.source_bytes == 1_440_000 * 2e4


def test_pace_on_gpus_is_the_slower_of_computing_and_decoding() -> None:
    phase = reach(stage("pretrain", "pretrain", epochs=1), 3_600_000, samples=3_600_000)

    def of(cores: int, **changes: Any) -> tuple[Estimate, str]:
        phases = {"pretrain": trained(samples_per_second=2000.0, decode_seconds=0.01, **changes)}
        probe = replace(PROBE, num_gpus=4, decoding_cores=cores, phases=phases)
        return estimate(probe, phase), "\n".join(cost_table.notes(probe, estimates(probe, phase), [phase]))

    few, notes = of(10, gpu_bytes=10**10, wait_share=0.3)
    assert few.wall_hours == pytest.approx(1), "10 cores decode 1,000 images a second, 4 GPUs compute 4,000"
    assert (few.gpu_hours, few.bound) == (pytest.approx(4), "decoding")
    assert "this pace excludes 30% of the time, spent waiting for data" in notes
    assert "compute 4,000 samples/s and 10 cores decode 1,000 samples/s: decoding limits the pace" in notes
    many, notes = of(100, gpu_bytes=10**10)
    assert (many.wall_hours, many.bound) == (pytest.approx(0.25), "")
    assert "computing limits the pace" in notes
    cpus, notes = of(10)
    assert cpus.wall_hours == pytest.approx(0.25), "on CPUs the measured pace includes decoding"
    assert "decode" not in notes


def test_evaluation_sums_the_forward_passes_of_all_models_on_all_sets() -> None:
    shot = SetSize(num_bytes=5 * GB, num_shards=2, images=50_000, texts=80_000, shares_texts=True)
    pairs = SetSize(num_bytes=GB, num_shards=1, images=5_000, texts=5_000, shares_texts=False)
    forward = ForwardPass(image_seconds=0.01, text_seconds=0.001, decode_seconds=0.02, peak_bytes=7)
    models = [reach(stage(name, name, epochs=1), 10) for name in ("pretrain", "finetune")]
    evaluation = reach(stage("evaluate", "evaluation"), 10)
    probe = replace(PROBE, sets=[shot, pairs], forward=forward)

    def of(probe: Measurements) -> Estimate:
        found = estimates(probe, *models, evaluation).by_stage["evaluate"]
        assert found is not None
        return found

    on_cpu, on_gpus = of(probe), of(replace(probe, num_gpus=4))
    of_shot, of_pairs = 2 * (50_000 * 0.01 + 80_000 * 0.001), 2 * 5_000 * 0.011
    assert on_cpu.wall_hours * HOUR == pytest.approx(of_shot + of_pairs)
    assert on_cpu.core_hours * HOUR == pytest.approx(of_shot + of_pairs + 55_000 * 0.02)
    assert (on_cpu.bound, on_cpu.source_bytes, on_cpu.memory_bytes) == ("1 actor", 6 * GB, 7)
    wall = 2 * (50_000 * 0.01 / 2 + 80_000 * 0.001) + of_pairs
    assert on_gpus.wall_hours * HOUR == pytest.approx(wall), "two tars give two actors, and each embeds all prompts"
    assert on_gpus.gpu_hours * HOUR == pytest.approx(wall + of_shot / 2 + 80_000 * 0.001)
    without = estimates(replace(probe, forward=None), *models, evaluation).by_stage
    assert without["evaluate"] is None


def test_row_groups_are_read_whole_for_each_window_with_kept_pairs() -> None:
    pool = replace(reach(stage("pool", "keep"), 1_000_000), left=1_000_000)

    def read(kept: int, rows_per_read: float) -> float:
        probe = replace(PROBE, rows_per_read=rows_per_read, phases={"pretrain": trained()})
        phase = reach(stage("pretrain", "pretrain", epochs=2), kept, samples=2 * kept)
        found = estimates(probe, pool, phase).by_stage["pretrain"]
        assert found is not None
        return found.source_bytes

    assert read(250_000, 1) == pytest.approx(500_000 * 2e4), "a tar: only the needed images"
    assert read(250_000, 100) == pytest.approx(2_000_000 * 2e4, rel=0.03), "Parquet: all images, twice"
    assert read(1_000_000, 5001) == pytest.approx(2_000_000 * 2e4 * 6), "windows of 1,000 pairs"
    assert read(1000, 100) == pytest.approx(2000 * 2e4 * 100, rel=0.06), "nearly every kept pair is alone in its group"


def test_table_has_sums_prices_and_unmeasured_stages() -> None:
    probe = replace(PROBE, stages={"score": measured(Cost(core_seconds=3.6, peak_bytes=10**8))})
    found = [replace(reach(stage("score"), 10_000_000), mark="<"), reach(stage("join"), 10)]
    prices = PlanConfig(core_hour_price=0.05)
    assert cost_table.columns(prices)[-1] == "dollars"
    assert "dollars" not in cost_table.columns(PlanConfig())
    score, join, whole = cost_table.cost_rows(estimates(probe, *found), found, prices)
    assert score == ("score", "<10,000,000", "10", "", "1.0 h", "", "100.0 MB", "50.0 MB", "$0.50")
    assert join == ("join", "10", "not measured", *[""] * 6)
    assert whole == ("total of measured stages", "", *score[2:])
    assert cost_table.cost_rows(estimates(probe, found[0]), found[:1], prices)[-1][0] == "total"


def test_notes_compare_with_training_on_every_pair() -> None:
    phase = reach(stage("pretrain", "pretrain", epochs=10), 1000, samples=10_000)
    probe = replace(PROBE, phases={"pretrain": trained(full_share=512)})
    pool = replace(reach(CATALOG, 2000), left=2000)
    measured_on, training, compared = cost_table.notes(probe, estimates(probe, phase), [pool, phase])
    assert "1,000 pairs" in measured_on
    assert "in the run 512 pairs per worker and batch" in training
    assert "25.0 s for training" in compared
    assert "10 epochs on every pair would take 50.0 s" in compared


def test_stage_that_follows_a_step_gets_the_pairs_of_that_step(tmp_path: Path) -> None:
    pl.DataFrame({"caption": ["a word"] * 1000}).write_parquet(tmp_path / "0.parquet")
    source = open_source(TableSource(uri=str(tmp_path)))
    stages = [
        CATALOG,
        stage("pool", "keep"),
        stage("half", "keep", keep_fraction=0.5),
        stage("tenth", "keep", keep_fraction=0.1),
        stage("pretrain", "pretrain", epochs=4),
        stage("captioned", "keep", follows="half"),
        stage("finetune", "finetune", epochs=1, follows="half"),
        stage("all", "finetune", epochs=1, on_whole_pool=True),
    ]
    found = {one.stage.name: one for one in reaches(stages, source, Catalog(CATALOG.artifact))}
    counts = {name: (one.reached, one.left, one.samples) for name, one in found.items()}
    assert counts["half"] == (1000, 500, None)
    assert counts["tenth"] == (500, 50, None)
    assert counts["pretrain"] == (50, 50, 200)
    assert counts["captioned"] == (500, 500, None)
    assert counts["finetune"] == (500, 500, 500)
    assert counts["all"] == (1000, 1000, 1000)


@pytest.mark.parametrize(
    ("budget", "error"),
    [
        ({"keep_pairs": 11}, r"selection\.last\.keep_pairs=11, but only 10 pairs reach the step; lower it"),
        (
            {"keep_fraction": 1e-9},
            r"selection\.last\.keep_fraction=1e-09 keeps none of the 10 pairs",
        ),
        ({"keep_pairs": 10}, None),
        ({"keep_fraction": 0.1}, None),
    ],
)
def test_a_budget_that_the_selection_refuses_is_refused(
    tmp_path: Path, budget: dict[str, Any], error: str | None
) -> None:
    pl.DataFrame({"caption": ["a word"] * 20}).write_parquet(tmp_path / "0.parquet")
    source = open_source(TableSource(uri=str(tmp_path)))
    stages = [CATALOG, stage("pool", "keep"), stage("half", "keep", keep_fraction=0.5), stage("last", "keep", **budget)]
    stages = [replace(one, step=one.name) for one in stages]
    found = reaches(stages, source, Catalog(CATALOG.artifact))
    with pytest.raises(UserError, match=error) if error else nullcontext():
        check_budgets(found)
