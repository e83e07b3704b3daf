"""A cluster that grows: Ray's autoscaler, with a provider that starts nodes as processes on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import run_process
from tests.support.local_cluster import LocalCluster
from tests.support.processes import called, descendants
from tests.support.training_runs import batches, command_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_autoscaler_starts_the_nodes_that_a_run_needs(
    tiny_conf: str, forked_workers: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "nodes").mkdir()
    cluster = LocalCluster(tmp_path / "nodes", cpus=3, head_cpus=0, env=dict(forked_workers))
    command = (
        f"{command_of(tiny_conf, tmp_path)} selection.steps=[random] selection.random.keep_fraction=0.5 "
        "training.epochs=2 training.num_workers=4"
    )
    try:
        cluster.start_autoscaler(max_nodes=2)
        (head,) = cluster.nodes
        assert len(called("raylet/raylet", descendants(head.pid))) == 1
        refused = run_process(command, cwd=tmp_path, env=cluster.driver_env)
        assert refused.returncode == 2
        assert "cluster.scales_to_cpus" in refused.stderr
        done = run_process(f"{command} cluster.scales_to_cpus=6", cwd=tmp_path, env=cluster.driver_env)
        assert done.returncode == 0, done.stderr
        assert len(called("raylet/raylet", descendants(head.pid))) == 3
    finally:
        cluster.stop()
    assert len(batches(tmp_path)) == 2 * 48 // 16
