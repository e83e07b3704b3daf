"""From a probe's measurements to a run's estimates: worked examples by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from orchestrator.artifacts import Artifact
from orchestrator.config import PlanConfig
from orchestrator.metering import Cost
from orchestrator.plan import table
from orchestrator.plan.costs import Estimate, Estimates
from orchestrator.plan.probe import Measured, Probe, Trained
from orchestrator.plan.rows import Reach
from orchestrator.source import Part, Shard
from orchestrator.stage import Stage

HOUR = 3600
GB = 1e9


@dataclass(frozen=True)
class Shards:
    """A pool of tars of a gigabyte each."""

    num_shards: int
    has_images: bool = True

    def parts(self) -> list[Part]:
        shards = [Shard(uri=f"{i}.tar", name=f"{i}.tar", num_bytes=int(GB), version="") for i in range(self.num_shards)]
        return [Part(index=i, shard=shard, first_row=0, num_rows=None) for i, shard in enumerate(shards)]


def stage(name: str, kind: str = "scores", **changes: Any) -> Stage:
    artifact = Artifact.of("/nowhere", kind, version=1, name=name, towers=["image"])
    return Stage(name=name, does="", artifact=artifact, build=lambda display: None, **changes)


def reach(of: Stage, reached: int, samples: int | None = None) -> Reach:
    return Reach(stage=of, reached=reached, left=reached, mark="", samples=samples)


def measured(cost: Cost, pairs: int = 1000, **changes: Any) -> Measured:
    return Measured(**{"cost": cost, "work": pairs, "pairs": pairs, "holds": 0, "num_bytes": 5000} | changes)


CATALOG = stage("catalog", "catalog")
PROBE = Probe(num_cores=10, num_gpus=0, shares_cores=False, num_workers=4, num_pairs=1000, image_bytes=2e4)


def estimate(probe: Probe, *found: Reach, shards: int = 100) -> dict[str, Estimate | None]:
    return Estimates(probe, Shards(shards), found, CATALOG.artifact).by_stage  # type: ignore[arg-type]


def test_hours_grow_with_the_pairs_and_share_the_cores() -> None:
    probe = replace(PROBE, stages={"score": measured(Cost(core_seconds=3.0, waiting_seconds=0.6, peak_bytes=7))})
    found = estimate(probe, reach(stage("score"), 1_000_000))["score"]
    assert found is not None
    assert found.core_hours == pytest.approx(3600 / HOUR), "3.6 s for a thousand are an hour for a million"
    assert found.wall_hours == pytest.approx(0.1), "on ten cores"
    assert (found.memory_bytes, found.store_bytes) == (7, pytest.approx(5_000_000))
    shared = estimate(replace(probe, shares_cores=True), reach(stage("score"), 1_000_000))["score"]
    assert shared is not None
    assert shared.core_hours == pytest.approx(3000 / HOUR), "who waits for a shared core does not hold one"


def test_the_catalog_grows_with_the_bytes_of_the_shards() -> None:
    probe = replace(PROBE, stages={"catalog": measured(Cost(core_seconds=36.0), work=4 * GB)})
    found = estimate(probe, reach(CATALOG, 123), shards=400)["catalog"]
    assert found is not None
    assert found.core_hours == pytest.approx(1.0)
    assert found.source_bytes == 400 * GB
    assert found.store_bytes == pytest.approx(500_000)


def test_clusters_count_as_work_and_as_memory() -> None:
    real = stage("assign", work=lambda pairs: pairs * 500, holds=lambda pairs: min(pairs, 50_000))
    probe = replace(
        PROBE,
        vector_bytes=3000,
        stages={"assign": measured(Cost(core_seconds=1.0, peak_bytes=10**8), work=1000 * 50, holds=1000)},
    )
    found = estimate(probe, reach(real, 100_000))["assign"]
    assert found is not None
    assert found.core_hours == pytest.approx(100 * 10 / HOUR), "a hundred times the pairs, ten times the clusters"
    assert found.memory_bytes == 10**8 + 49_000 * 3000


def test_what_holds_a_gpu_pays_for_that_and_reads_the_images() -> None:
    cost = Cost(core_seconds=8.0, gpu_seconds=2.0)
    probe = replace(PROBE, num_gpus=4, stages={"embed": measured(cost)})
    found = estimate(probe, reach(stage("embed", "embedding"), 1_800_000))["embed"]
    assert found is not None
    assert found.gpu_hours == pytest.approx(1.0)
    assert found.core_hours == pytest.approx(3.0)
    assert found.wall_hours == pytest.approx(0.3), "the cores are what it waits for"
    assert found.source_bytes == 1_800_000 * 2e4


def trained(**changes: Any) -> Trained:
    numbers = {"samples_per_second": 200.0, "num_workers": 2, "batch_size": 64, "peak_bytes": 9, "gpu_bytes": 0}
    return Trained(**numbers | {"num_bytes": 6 * 10**8} | changes)


def test_training_by_samples_and_workers() -> None:
    phase = reach(stage("pretrain", "pretrain", epochs=32), 10_000, samples=1_440_000)
    found = estimate(replace(PROBE, phases={"pretrain": trained()}), phase)["pretrain"]
    assert found is not None
    assert found.wall_hours == pytest.approx(1.0), "four workers at a hundred samples a second each"
    assert (found.core_hours, found.gpu_hours) == (pytest.approx(10.0), 0)
    on_gpus = estimate(replace(PROBE, num_gpus=4, phases={"pretrain": trained(gpu_bytes=10**10)}), phase)["pretrain"]
    assert on_gpus is not None
    assert (on_gpus.core_hours, on_gpus.gpu_hours) == (0, pytest.approx(4.0))
    assert on_gpus.source_bytes == 1_440_000 * 2e4


def test_the_table_sums_prices_and_names_what_was_not_measured() -> None:
    probe = replace(PROBE, stages={"score": measured(Cost(core_seconds=3.6, peak_bytes=10**8))})
    found = [reach(stage("score"), 10_000_000), reach(stage("join"), 10)]
    estimates = Estimates(probe, Shards(1), found, CATALOG.artifact)  # type: ignore[arg-type]
    prices = PlanConfig(core_hour_price=0.05)
    assert table.columns(prices)[-1] == "dollars"
    assert "dollars" not in table.columns(PlanConfig())
    score, join, whole = table.cost_rows(estimates, prices)
    assert score == ("score", "10", "", "1.0 h", "", "100.0 MB", "50.0 MB", "$0.50")
    assert join == ("join", "not measured", *[""] * 6)
    assert whole == ("all of it", *score[1:])


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "<1 s"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (864_000, "10.0 d")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert table.duration(seconds) == shown
