"""The probe on real pools: it runs the stages on a few parts and leaves no files behind."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import ray

from orchestrator.config import ClipScoreStep, DbpStep, KeepListStep, RandomStep, TableSource
from orchestrator.config.source import WebDatasetSource
from orchestrator.data.catalog import catalog_stage
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Meter, current_meter, metering
from orchestrator.errors import UserError
from orchestrator.plan import probe_config
from orchestrator.plan.probe_pool import sample_parts
from orchestrator.source import open_source
from tests.support.commands import Shell, tiny_command
from tests.support.embedded import blobs, write_pool
from tests.support.pools import config_of, make_pairs, write_tars, write_zero_shot


def costs(stdout: str) -> dict[str, list[str]]:
    """Return the cells of the cost table by stage."""
    lines = stdout.split("estimated cost of the remaining stages")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in rows}


def test_parts_are_sampled_evenly_from_the_pool(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(90), num_shards=9)
    whole = open_source(WebDatasetSource(uri=uri))
    drawn = sample_parts(whole, 3)
    some = drawn.subset
    assert [part.index for part in some.parts()] == [0, 1, 2]
    assert [part.shard for part in some.parts()] == [whole.parts()[place].shard for place in (0, 4, 8)]
    sizes = [part.shard.num_bytes for part in whole.parts()]
    assert drawn.share == pytest.approx((sizes[0] + sizes[4] + sizes[8]) / sum(sizes))
    assert drawn.pool_bytes == pytest.approx(sum(sizes))
    assert (drawn.image_bytes, drawn.rows_per_read) == (0, 1), "the catalog has the sizes"
    few = replace(some, max_rows=4)
    second = few.parts()[1]
    table = few.catalog(second).table
    assert table.num_rows == 4
    assert table.equals(some.catalog(second).table.slice(0, 4))
    assert list(few.images(second, table)) == list(whole.images(whole.parts()[4], table))
    assert len(sample_parts(whole, 100).subset.chosen) == 9
    assert few.identity() != some.identity()


def test_few_large_parts_are_sampled_and_unknown_sizes_count_as_the_mean(tmp_path: Path) -> None:
    for number, rows in enumerate((30_000, 45_000, 45_000)):
        pl.DataFrame({"caption": ["a word"] * rows}).write_parquet(tmp_path / f"{number}.parquet")
    (tmp_path / "3.csv").write_text("caption\nof one row\n")
    drawn = sample_parts(open_source(TableSource(uri=str(tmp_path))), 4)
    assert [part.num_rows for part in drawn.subset.chosen] == [30_000, None]
    assert drawn.share == pytest.approx((30 + 40) / (30 + 45 + 45 + 40))
    text = pl.read_parquet(tmp_path / "0.parquet").estimated_size()
    assert 0 < drawn.pool_bytes < text, "the compressed captions and the whole CSV file"
    assert drawn.subset.max_rows is None
    cut = sample_parts(open_source(TableSource(uri=str(tmp_path))), 4, max_rows=10_000).subset
    assert [cut.catalog(part).table.num_rows for part in cut.parts()] == [5000, 1]


@pytest.mark.parametrize("kind", ["table", "parquet"])
def test_empty_pool_is_the_same_error_as_in_select(tmp_path: Path, kind: str) -> None:
    schema = {"key": pl.String, "caption": pl.String, "jpg": pl.Binary}
    pl.DataFrame(schema=schema).write_parquet(tmp_path / "0.parquet")
    source = config_of({"format": kind, "uri": str(tmp_path)}, tmp_path).source
    with pytest.raises(UserError) as planned:
        sample_parts(open_source(source), 4)
    with pytest.raises(UserError, match="the source has no pairs") as selected:
        catalog_stage(f"{tmp_path}/store", open_source(source), source.limits).build(Display())
    assert str(planned.value) == str(selected.value)


def test_step_is_reduced_for_the_probe() -> None:
    assert probe_config.step_of(KeepListStep(uri="x.npy"), 4000, math.inf) == RandomStep(keep_fraction=0.5)
    score = probe_config.step_of(ClipScoreStep(embedding="e", threshold=0.3), 4000, math.inf)
    assert isinstance(score, ClipScoreStep)
    assert (score.threshold, score.keep_fraction) == (None, 0.5), "all random vectors are below a threshold"
    dbp = probe_config.step_of(DbpStep(embedding="e", keep_pairs=1_000_000), 4000, math.inf)
    assert isinstance(dbp, DbpStep)
    assert (dbp.keep_pairs, dbp.keep_fraction) == (None, 0.5)
    assert (dbp.clustering.k, dbp.clustering.num_iterations) == (500, probe_config.MAX_ITERATIONS)
    assert probe_config.step_of(DbpStep(embedding="e"), 800, math.inf).clustering.k == 100  # type: ignore[union-attr]
    assert probe_config.step_of(DbpStep(embedding="e"), 800, 4.7).clustering.k == 4  # type: ignore[union-attr]


def test_work_in_tasks_is_measured_in_its_second_call(ray_cluster: str) -> None:
    def work(seconds: float) -> int:
        time.sleep(seconds)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return 7

    assert Meter().around(work) is work
    with metering() as cost:
        meter = current_meter()
        tasks = [ray.remote(lambda: meter.around(work)(0.3)).remote() for _ in range(2)]
        assert ray.get(tasks) == [7, 7]
        found = cost()
    assert found.core_seconds == pytest.approx(0.6, abs=0.1)
    assert found.waiting_seconds >= 0.6
    assert found.gpu_seconds == 0
    assert found.peak_bytes > 10 * 2**20
    assert current_meter().total is None


@pytest.mark.slow
@pytest.mark.long
def test_plan_estimates_every_stage(run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path) -> None:
    write_zero_shot(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    command = tiny_command(tiny_conf, tar_pool).replace(" run ", " plan ")
    steps = "selection.steps=[wfpp,dbp] selection.dbp.embedding=lite selection.dbp.keep_fraction=0.5"
    settings = "training.evaluate_every_steps=2 training.accumulation=2 plan.core_hour_price=36000 plan.probe_parts=2"
    done = run_command(f"{command} store=STORE {steps} selection.dbp.num_neighbours=3 {settings}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    assert {"catalog", "score, wfpp", "embed, lite", "dbp", "pretrain", "finetune"} <= set(found)
    assert float(found["evaluate"][1].removeprefix("<")) > 0
    assert "not estimated: evaluation during training" in done.stdout
    assert all(cells[1] and not cells[2] for cells in found.values()), "core-hours but no GPU-hours"
    dollars = {name: float(cells[-1].strip("$").replace(",", "")) for name, cells in found.items()}
    assert dollars["pretrain"] == pytest.approx(2 * 36 / 96 * dollars["finetune"], rel=0.01), "proportional to samples"
    total = dollars.pop("total of measured stages")
    assert total == pytest.approx(sum(dollars.values()), rel=0.01)
    assert dollars["embed, lite"] > 36000 * 96 * 0.001 / 3600, "at least a millisecond per image"
    reads = {name for name, cells in found.items() if cells[4]}
    assert reads == {"catalog", "embed, lite", "pretrain", "finetune", "evaluate", "total of measured stages"}
    assert "samples/s with 2 workers and 8 pairs per worker and batch" in done.stdout
    assert "64 pairs of the pool" in done.stdout
    left = [path for path in tmp_path.rglob("*") if path not in before]
    assert not [path for path in left if path.is_file()], "the probe removes its files"


def test_external_vectors_are_replaced_by_random_ones(run_command: Shell, tmp_path: Path) -> None:
    pool = write_pool(tmp_path, list(blobs(400, 8, 5)))
    nodes = (
        "selection.steps=[keep_list,semdedup,dbp] selection.keep_list.uri=kept.parquet "
        "selection.semdedup.embedding=columns selection.dbp.embedding=columns selection.dbp.keep_fraction=0.01 "
        "selection.semdedup.clustering.k=40 selection.dbp.clustering.k=40"
    )
    pl.DataFrame({"key": [f"k{number:06d}" for number in range(300)]}).write_parquet(tmp_path / "kept.parquet")
    done = run_command(
        f"python -m orchestrator plan +exp=wfpp source=table source.uri={pool.table} source.key_column=key {nodes} "
        f"embedding.columns.uri={pool.vectors} store={tmp_path}/store",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    assert found["embed, columns"][1] == "not measured"
    assert "not estimated: embed, columns" in done.stdout
    for name in (
        "sort, columns",
        "join, columns",
        "join, keep_list",
        "align, keep_list",
        "train centroids, semdedup",
        "train centroids, dbp",
        "compare, semdedup",
        "assign, dbp",
        "quotas, dbp",
        "dbp",
    ):
        assert found[name][1] == "<0.001", "little work, but measured"
    assert found["dbp"][0].startswith("<"), "an upper bound, because a filter before it is not computed yet"
