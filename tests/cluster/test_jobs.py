"""`ray job submit` on a running cluster: from a clone and from a wheel; stop a job and submit it again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import environment, run_process
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.processes import called, descendants
from tests.support.training_runs import STEPS, command_of, curve

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("cluster"), nodes=1, cpus=6, dashboard=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a clone has, with uncommitted changes."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def submit(cluster: LocalCluster, entrypoint: str, *, cwd: Path, options: str = "") -> subprocess.CompletedProcess[str]:
    return run_process(f"ray job submit {options} -- {entrypoint}", cwd=cwd, env=cluster.job_env)


@contextmanager
def submitted(
    cluster: LocalCluster, entrypoint: str, name: str, clone: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Submit a job and yield its process. The output goes to log.txt. Stopping the job can take a while."""
    patient = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}})
    options = f"--working-dir . --submission-id {name} --runtime-env-json '{patient}'"
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec ray job submit {options} -- {entrypoint}"],
            cwd=clone,
            env=environment(**cluster.job_env),
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()


def num_heads(cluster: LocalCluster) -> int:
    """Return the number of head processes: of the cluster, and of clusters that its jobs have started."""
    return len(called("gcs_server", descendants(cluster.nodes[0].pid)))


def test_a_stopped_job_from_a_clone_resumes_when_submitted_again(
    cluster: LocalCluster, clone: Path, tiny_conf: str, tmp_path: Path
) -> None:
    command = f"{command_of(tiny_conf, tmp_path)} training.num_workers=1".replace("=pool", f"={tmp_path / 'pool'}")
    placed = command.replace("=OUT", f"={tmp_path / 'OUT'}").replace("=STORE", f"={tmp_path / 'STORE'}")
    with submitted(cluster, f"{placed} training.checkpoint_every_steps=10000", "first", clone, tmp_path) as waiting:
        while not list(tmp_path.glob("STORE/pretrain/*/tensorboard/*")):
            assert waiting.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.1)
        assert num_heads(cluster) == 1, "the job uses the cluster that it runs on"
        stopped = run_process("ray job stop first", cwd=clone, env=cluster.job_env)
        assert stopped.returncode == 0, stopped.stderr
        waiting.wait(timeout=240)
    assert "stopped after step" in (tmp_path / "log.txt").read_text()
    (checkpoint,) = tmp_path.glob("STORE/pretrain/*/checkpoints/step_*.pt")
    step = int(checkpoint.stem.removeprefix("step_"))
    logged = [record for record in curve(tmp_path) if record["step"] <= step]
    done = submit(cluster, placed, cwd=clone, options="--working-dir .")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny: done in" in done.stdout
    assert curve(tmp_path)[: len(logged)] == logged, "no step runs twice"
    assert curve(tmp_path)[-1]["step"] == STEPS
    # the copy of the working directory is deleted with the job
    relative = submit(cluster, command, cwd=clone, options="--working-dir .")
    assert relative.returncode == 1
    assert "store=STORE lies in the job's copy of the working directory" in relative.stdout
    assert "Traceback" not in relative.stdout


def test_jobs_from_a_wheel_use_its_configuration_and_exit_code(cluster: LocalCluster, tmp_path: Path) -> None:
    pip = f"{sys.executable} -m pip"
    built = run_process(f"{pip} wheel -q --no-deps -w {tmp_path / 'dist'} {ROOT}", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    unpacked = run_process(f"{pip} install -q --no-deps --target site dist/*.whl", cwd=tmp_path)
    assert unpacked.returncode == 0, unpacked.stderr
    runtime = json.dumps({"env_vars": {"PYTHONPATH": str(tmp_path / "site")}})
    # the wheel brings its configuration and its entry point, which gives the exit code
    done = submit(
        cluster,
        f"{tmp_path / 'site' / 'bin' / 'orchestrator'} plan +exp=dbp_demo plan.probe=false store={tmp_path / 'STORE'}",
        cwd=tmp_path,
        options=f"--runtime-env-json '{runtime}'",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plan of dbp_demo" in done.stdout
    failed = submit(
        cluster,
        f"{tmp_path / 'site' / 'bin' / 'orchestrator'} run +exp=wfpp_laion source.uri=/nowhere "
        f"store={tmp_path / 'STORE'} out={tmp_path / 'OUT'}",
        cwd=tmp_path,
        options=f"--runtime-env-json '{runtime}'",
    )
    assert failed.returncode == 1
    assert "orchestrator: source.uri: no such path: /nowhere" in failed.stdout
