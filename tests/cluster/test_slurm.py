"""The SLURM script, with fake SLURM and Ray commands that log their arguments.

The script starts one head and a node on each other host. When all nodes are up it runs the job and returns its exit
code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "conf" / "cluster" / "slurm.sh"
NODES, PATIENCE = 3, 30.0
# fake srun: one task per node; a failed task ends the step, and the end of the step kills all tasks
SRUN = """#!/usr/bin/env bash
echo "srun ${*:1:$#-3}" >> "$LOG"
trap 'kill $(jobs -p) 2>/dev/null' TERM
for ((number = 0; number < SLURM_NNODES; number++)); do SLURM_PROCID=$number "${@: -3}" & done
for ((number = 0; number < SLURM_NNODES; number++)); do
  wait -n || { code=$?; kill $(jobs -p) 2>/dev/null; wait; exit $code; }
done
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$LOG"
for ((number = 0; number < SLURM_NNODES; number++)); do echo "host$number"; done
"""
RAY = """#!/usr/bin/env bash
case "$1" in
  health-check) test -e "$UP/0" ;;
  list) for _ in "$UP"/*; do echo '"node_id": 1'; done ;;
  start)
    if [ "$SLURM_PROCID" != 0 ] && ! [ -e "$UP/0" ]; then echo "before the head" >> "$LOG"; fi
    echo "node$SLURM_PROCID ray $* RAY_ADDRESS=${RAY_ADDRESS:-}" >> "$LOG"
    if [ "$SLURM_PROCID" = "${FAILING:-}" ]; then exit 3; fi
    trap 'echo "node$SLURM_PROCID stopped" >> "$LOG"; exit 0' TERM
    touch "$UP/$SLURM_PROCID"
    while true; do sleep 1; done ;;
  *) echo "ray $*" >> "$LOG" ;;
esac
"""
JOB = """#!/usr/bin/env bash
echo "job $* RAY_ADDRESS=$RAY_ADDRESS RAY_AUTH_MODE=$RAY_AUTH_MODE after $(ls "$UP" | wc -l) nodes" >> "$LOG"
trap 'echo "job terminated" >> "$LOG"; exit 143' TERM
while [ "$1" = waits ]; do sleep 1; done
exit "${1:-0}"
"""
SLEEP = f"#!/usr/bin/env bash\nexec {shutil.which('sleep')} 0.05\n"


@contextmanager
def submitted(folder: Path, *job: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start the script as `sbatch` does. The file `log` gets one line per call."""
    (folder / "bin").mkdir()
    stubs = {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "job": JOB, "sleep": SLEEP}
    for name, text in stubs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "up").mkdir()
    (folder / "log").touch()
    slurm = {"SLURM_NNODES": str(NODES), "SLURM_JOB_NODELIST": "host[0-2]", "SLURM_CPUS_ON_NODE": "48"}
    own = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "LOG": f"{folder}/log", "UP": f"{folder}/up"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    process = subprocess.Popen(
        ["bash", SCRIPT, "job", *job],
        env={**inherited, **slurm, **own, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def said(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def wait_for(line: str, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not any(found.startswith(line) for found in said(folder)):
        assert time.monotonic() < end, said(folder)
        time.sleep(0.02)


def test_the_job_runs_after_all_nodes_are_up_and_its_exit_code_is_returned(tmp_path: Path) -> None:
    with submitted(tmp_path, "7", "a b", SLURM_GPUS_ON_NODE="8") as script:
        assert script.wait(timeout=PATIENCE) == 7
        for number in range(NODES):
            wait_for(f"node{number} stopped", tmp_path)
    lines = said(tmp_path)
    assert "scontrol show hostnames host[0-2]" in lines
    assert "ray get-auth-token --generate" in lines
    (step,) = [line for line in lines if line.startswith("srun")]
    assert {f"--nodes={NODES}", f"--ntasks={NODES}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(step.split())
    size = "--num-cpus=48 --num-gpus=8 --disable-usage-stats --block RAY_ADDRESS="
    assert sorted(line for line in lines if "ray start" in line) == [
        f"node0 ray start --head --port=6379 {size}",
        *(f"node{number} ray start --address=host0:6379 {size}host0:6379" for number in range(1, NODES)),
    ]
    assert "before the head" not in lines
    job = f"job 7 a b RAY_ADDRESS=host0:6379 RAY_AUTH_MODE=token after {NODES} nodes"
    assert [line for line in lines if line.startswith("job")] == [job]


def test_nodes_without_gpus_and_another_port(tmp_path: Path) -> None:
    with submitted(tmp_path, "0", RAY_PORT="7000") as script:
        assert script.wait(timeout=PATIENCE) == 0
    starts = [line for line in said(tmp_path) if "ray start" in line]
    assert len(starts) == NODES
    assert all("--num-gpus=0" in line for line in starts)
    assert sum("--head --port=7000" in line for line in starts) == 1
    assert sum("--address=host0:7000" in line for line in starts) == NODES - 1


def test_after_sigterm_the_script_waits_for_the_job_to_end(tmp_path: Path) -> None:
    with submitted(tmp_path, "waits") as script:
        wait_for("job waits", tmp_path)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=PATIENCE) == 143
    assert "job terminated" in said(tmp_path)


@pytest.mark.parametrize("failing", ["0", "2"])
def test_no_job_runs_if_nodes_do_not_start(failing: str, tmp_path: Path) -> None:
    with submitted(tmp_path, "0", FAILING=failing) as script:
        _, stderr = script.communicate(timeout=PATIENCE)
        assert script.returncode == 1
    assert stderr.strip() == f"the Ray cluster did not start on {NODES} nodes"
    assert not [line for line in said(tmp_path) if line.startswith("job")]
