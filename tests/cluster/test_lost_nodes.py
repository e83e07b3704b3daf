"""A run that loses a node in every stage gives the same results as an undisturbed run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from orchestrator.engine.role import Role
from orchestrator.engine.run_record import PHASES, RunRecord
from tests.support.commands import geometry_command
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.pools import write_zero_shot
from tests.support.processes import descendants, kill, started, wait_for
from tests.support.training_runs import said

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
# the kinds of artifacts, in the order in which they are made
STAGES = ("catalog", "embedding", "centroids", "compared", "cluster_stats", "pretrain", "finetune", "evaluation")
# titles of Ray processes that run no task or actor of a stage
AT_REST = ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")


def test_losing_a_node_in_every_stage_changes_no_result(
    geometry_run: Path, tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    (tmp_path / "nodes").mkdir()
    write_zero_shot(tmp_path)
    # the head has no CPUs, so only tasks that need none run on it
    with local_cluster(tmp_path / "nodes", nodes=4, head_cpus=0) as cluster:
        command = (
            f"{geometry_command(tiny_conf, tar_pool)} out=GEO store=STORE training.max_failures=4 "
            f"cluster.scales_to_cpus={3 * cluster.cpus}"
        )
        with started(command, tmp_path, cluster.driver_env) as process:
            under_way = {stage: lose_a_node(cluster, tmp_path / "STORE" / stage, process) for stage in STAGES}
            assert process.wait(timeout=400) == 0, said(tmp_path)
    assert under_way == dict.fromkeys(STAGES, True), "the stage had finished before the node was lost"
    assert result(tmp_path) == result(geometry_run)


def lose_a_node(cluster: LocalCluster, stage: Path, process: subprocess.Popen[bytes]) -> bool:
    """Kill a node that works on the stage and start another one. Return whether the stage was unfinished then."""

    def seen() -> tuple[Path, subprocess.Popen[bytes]] | None:
        begun = [lease.parent for lease in stage.glob("*/lease.json")]
        working = [node for node in cluster.nodes[1:] if node.poll() is None and works(node)]
        return (begun[0], working[0]) if begun and working else None

    artifact, node = wait_for(seen, process)
    kill(node)
    is_under_way = not (artifact / "manifest.json").exists()
    cluster.add_node(wait=False)
    return is_under_way


def works(node: subprocess.Popen[bytes]) -> bool:
    """Return whether a task or actor runs on the node."""
    for one in descendants(node.pid):
        try:
            title = " ".join(one.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and not title.startswith(AT_REST):
            return True
    return False


def result(folder: Path) -> dict[str, Any]:
    """Return the keep lists, global batches, funnel and samples seen of the run `GEO`."""
    record = RunRecord.read(str(folder / "GEO"))
    report = json.loads((folder / "GEO" / "report.json").read_text())
    kept = {
        stage.name: [path.read_bytes() for path in sorted(Path(stage.uri).glob("parts/*.bits"))]
        for stage in record.stages
        if stage.kind == "keep"
    }
    batches = {}
    for phase in PHASES:
        trained = record.find(Role(phase))
        assert trained is not None
        table = pq.read_table(trained.path("batches"))
        batches[phase] = sorted(zip(table["step"].to_pylist(), table["key"].to_pylist(), strict=True))
    assert all(kept.values())
    seen = {
        phase: phase_report["samples_seen"]
        for phase, phase_report in report["training"].items()
        if isinstance(phase_report, dict)
    }
    return {"kept": kept, "batches": batches, "funnel": report["funnel"], "seen": seen}
