"""The probe on real pools: the run's own stages, on a few parts, leaving nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray
from commands import Shell, tiny_command
from embedded import blobs, write_pool
from pools import config_of, make_pairs, write_tars

from orchestrator.config import AllStep, DbpStep
from orchestrator.config.source import WebDatasetSource
from orchestrator.metering import Meter, current_meter, metering
from orchestrator.plan import smaller
from orchestrator.plan.subset import Subset, size_of
from orchestrator.source import open_source


def costs(stdout: str) -> dict[str, list[str]]:
    """The cells of the second table, by stage."""
    lines = stdout.split("what is still to be computed would take")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in rows}


def test_parts_are_spread_over_the_pool(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(90), num_shards=9)
    whole = open_source(WebDatasetSource(uri=uri))
    some = Subset.spread(whole, 3)
    assert some.places == (0, 4, 8)
    assert [part.index for part in some.parts()] == [0, 1, 2]
    assert [part.shard for part in some.parts()] == [whole.parts()[place].shard for place in some.places]
    assert 0.3 < size_of(some.parts()) / size_of(whole.parts()) < 0.4
    few = Subset(whole, some.places, max_rows=4)
    (second,) = [part for part in few.parts() if part.index == 1]
    table = few.catalog(second).table
    assert table.num_rows == 4
    assert table.equals(some.catalog(second).table.slice(0, 4))
    assert list(few.images(second, table)) == list(whole.images(whole.parts()[4], table))
    assert Subset.spread(whole, 100).places == tuple(range(9))
    assert few.identity() != some.identity()


def test_selection_is_cut_down_to_the_probe(tmp_path: Path) -> None:
    nodes = {
        "given": {"method": "keep_list", "uri": "x.npy"},
        "half": {"method": "random", "keep_fraction": 0.5},
        "dbp": {"embedding": "e", "keep_pairs": 1_000_000},
    }
    config = config_of(
        {"format": "table", "uri": "x"},
        tmp_path,
        embedding={"e": {"kind": "columns", "uri": "x"}},
        selection={"steps": list(nodes), **nodes},
    )
    found = smaller.selection_of(config, num_pairs=4000, pool_share=0.001).selection.settings
    assert found["given"] == AllStep()
    assert found["half"] == config.selection.settings["half"]
    dbp = found["dbp"]
    assert isinstance(dbp, DbpStep)
    assert dbp.keep_pairs == 1000
    assert dbp.clustering.k == 2000 // smaller.PAIRS_PER_CLUSTER
    assert dbp.clustering.num_iterations == smaller.MAX_ITERATIONS


def test_work_in_tasks_is_measured_the_second_time(ray_cluster: str) -> None:
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


def test_a_run_is_estimated_stage_by_stage(typed: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path) -> None:
    command = tiny_command(tiny_conf, tar_pool).replace(" run ", " plan ").split(" evaluation.")[0]
    done = typed(f"{command} store=STORE plan.core_hour_price=36000 plan.probe_parts=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    assert {"catalog", "count words, wfpp", "score, wfpp", "wfpp", "pretrain", "finetune", "all of it"} <= set(found)
    assert all(cells[0] and not cells[1] for cells in found.values()), "core-hours, and no GPU-hours"
    dollars = {name: float(cells[-1].strip("$").replace(",", "")) for name, cells in found.items()}
    assert dollars["pretrain"] == pytest.approx(2 * 72 / 96 * dollars["finetune"], rel=0.01), "by the samples of each"
    total = dollars.pop("all of it")
    assert total == pytest.approx(sum(dollars.values()), rel=0.01)
    assert "samples/s by 2 worker(s)" in done.stdout
    assert "64 pairs of the pool" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is left"


def test_vectors_brought_along_are_drawn(typed: Shell, tmp_path: Path) -> None:
    pool = write_pool(tmp_path, list(blobs(400, 8, 5)))
    nodes = "selection.steps=[semdedup,dbp] selection.semdedup.embedding=columns selection.dbp.embedding=columns"
    done = typed(
        f"python -m orchestrator plan +exp=wfpp source=table source.uri={pool.table} source.key_column=key {nodes} "
        f"embedding.columns.uri={pool.vectors} store={tmp_path}/store",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    assert found["join, columns"][0] == "not measured"
    for name in ("train centroids, semdedup", "compare, semdedup", "assign, dbp", "quotas, dbp", "dbp"):
        assert found[name][0] == "<0.001", "a moment of work, yet measured"
    assert found["embed, columns"][0] == "not measured"


@pytest.mark.slow
def test_an_encoder_is_measured_on_a_few_pictures(typed: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path) -> None:
    command = tiny_command(tiny_conf, tar_pool).replace(" run ", " plan ").split(" evaluation.")[0]
    nodes = "selection.steps=[dbp] selection.dbp.embedding=lite selection.dbp.num_neighbours=3"
    done = typed(f"{command} {nodes} store=STORE plan.core_hour_price=36000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    cores, _, _, read, memory, stored, dollars = found["embed, lite"]
    assert float(dollars.strip("$").replace(",", "")) > 36000 * 96 * 0.001 / 3600, "milliseconds a picture at the least"
    assert cores
    assert read
    assert memory
    assert "kB" in stored
    assert found["assign, dbp"][0] == "<0.001"
