"""Clusters of several nodes: training across nodes, lost nodes, and folders that only one node sees."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.commands import Shell, run_process
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.pools import make_pairs, real_captions, write_table, write_tars
from tests.support.processes import called, descendants, kill, started, wait_for
from tests.support.training_runs import STEPS, batches, command_of, curve, said, wait_for_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORKER = "RayTrainWorker"


@pytest.fixture
def three(tmp_path: Path) -> Iterator[LocalCluster]:
    """A head and two nodes with 3 CPUs each. Four training workers do not fit on one node."""
    (tmp_path / "nodes").mkdir()
    with local_cluster(tmp_path / "nodes", nodes=3) as cluster:
        yield cluster


def parts(folder: Path, kind: str) -> list[Path]:
    return list((folder / "STORE" / kind).glob("*/parts/*.json"))


def with_workers(nodes: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [node for node in nodes if called(WORKER, descendants(node.pid))]


@pytest.mark.long
def test_losing_a_node_in_training_changes_no_batch_or_loss(
    three: LocalCluster, run_command: Shell, tiny_conf: str, tmp_path: Path
) -> None:
    folder, alone = tmp_path / "three", tmp_path / "alone"
    for each in (folder, alone):
        each.mkdir()
    command = command_of(tiny_conf, folder) + " training.num_workers=4 training.max_failures=4"
    with started(command, folder, three.driver_env) as process:
        wait_for_checkpoints(2, folder, process)
        holding = with_workers(three.nodes)
        assert len(holding) >= 2, "the workers are on several nodes"
        lost = next(node for node in holding if node is not three.nodes[0])
        kill(lost)
        three.add_node()
        assert process.wait(timeout=400) == 0, said(folder)
    assert len(with_workers(three.nodes)) == 0
    done = run_command(command_of(tiny_conf, alone) + " training.num_workers=4", cwd=alone)
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in curve(folder)] == list(range(1, STEPS + 1))
    assert batches(folder) == batches(alone)
    assert [record["loss"] for record in curve(folder)] == pytest.approx(
        [record["loss"] for record in curve(alone)], abs=1e-5
    )


def test_losing_a_node_in_scoring_changes_no_result(
    forked_workers: dict[str, str], run_command: Shell, tmp_path: Path
) -> None:
    (tmp_path / "nodes").mkdir()
    write_table(tmp_path / "table", real_captions(1500) * 2, num_files=2)
    select = "python -m orchestrator select +exp=wfpp source=table source.uri=table source.part_rows=40"
    with (
        local_cluster(tmp_path / "nodes", nodes=2, env=forked_workers) as cluster,
        started(f"{select} out=OUT store=STORE", tmp_path, cluster.driver_env) as process,
    ):
        wait_for(lambda: len(parts(tmp_path, "scores")) >= 3, process)
        kill(cluster.nodes[-1])
        assert process.wait(timeout=400) == 0, said(tmp_path)
    whole = run_command(f"{select} out=WHOLE store=STORE2", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    exported = [
        run_command(f"python -m orchestrator export run={run} to={run}.parquet", cwd=tmp_path).returncode
        for run in ("OUT", "WHOLE")
    ]
    reports = [json.loads((tmp_path / run / "report.json").read_text())["funnel"] for run in ("OUT", "WHOLE")]
    assert reports[0] == reports[1]
    assert exported == [0, 0]
    assert pq.read_table(tmp_path / "OUT.parquet").equals(pq.read_table(tmp_path / "WHOLE.parquet"))


@pytest.mark.long
def test_each_gpu_has_one_embedder_and_losing_a_node_changes_no_vector(run_command: Shell, tmp_path: Path) -> None:
    write_tars(tmp_path / "pool", make_pairs(240), num_shards=12)
    (tmp_path / "nodes").mkdir()
    settings = (
        "embedding.lite.batch_size=8 selection.steps=[ssp] selection.ssp.embedding=lite selection.ssp.clustering.k=4"
    )
    select = f"python -m orchestrator select +exp=wfpp source.uri=pool {settings}"
    with local_cluster(tmp_path / "nodes", nodes=1) as cluster:
        head, with_gpus = cluster.nodes[0], [cluster.add_node(gpus=1) for _ in range(2)]
        with started(f"{select} out=OUT store=STORE", tmp_path, cluster.driver_env) as process:
            wait_for(lambda: len(parts(tmp_path, "embedding")) >= 2, process)
            assert [len(called("Embedder", descendants(node.pid))) for node in (head, *with_gpus)] == [0, 1, 1]
            kill(with_gpus[1])
            assert process.wait(timeout=400) == 0, said(tmp_path)
    whole = run_command(f"{select} out=WHOLE store=STORE2", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    vectors = [
        {path.name: path.read_bytes() for path in (tmp_path / kept).glob("embedding/*/parts/*.npy")}
        for kept in ("STORE", "STORE2")
    ]
    assert len(vectors[0]) == 12
    assert vectors[0] == vectors[1]


def test_a_store_that_only_one_node_sees_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to unshare mounts")
    write_table(tmp_path / "table", real_captions(100), num_files=1)
    select = "python -m orchestrator select +exp=wfpp source=table source.uri=table"
    with local_cluster(tmp_path, nodes=1) as cluster:
        cluster.add_node(before=f"mount -t tmpfs tmpfs {mine}")
        done = run_process(f"{select} out=OUT store=mine/STORE", cwd=tmp_path, env=cluster.driver_env)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"store={mine}/STORE is a folder of one node" in line
        assert "all 2 nodes share" in line
        assert not list(mine.glob("STORE/**/.seen*"))
        # no address is given, but this machine is a node of the cluster
        shared = run_process(f"{select} out=OUT store=STORE", cwd=tmp_path, env=cluster.env)
        assert shared.returncode == 0, shared.stderr
        assert len(cluster.sessions()) == 1, "no other cluster was started"
