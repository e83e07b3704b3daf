"""Run the demo on three nodes while workers, nodes and the driver are killed at random.

The script restarts a killed driver. It compares the results with those of an undisturbed run.

PYTHONPATH=. python tests/benchmarks/chaos.py --folder runs/chaos --minutes 10 --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from tests.support.commands import environment
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.processes import descendants, kill

RUN = (
    "python -m orchestrator run +exp=demo training.record_batches=true training.checkpoint_every_steps=20 "
    "training.max_failures=1000 out=OUT store=STORE"
)
# a start takes most of a minute on two cores; with more frequent kills no run would reach a checkpoint
LEAST_PAUSE, LONGEST_PAUSE = 15.0, 60.0
MOST_STARTS = 5
USAGE_ERROR = 2
VICTIMS = ("worker", "worker", "node", "driver")
# a node dies with its agents, and the head would, too: do not kill them
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def main() -> None:
    """Print the number of kills and whether the results are equal. Exit with 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrides", default="", help="settings of both runs")
    asked = parser.parse_args()
    folders = {name: asked.folder / name for name in ("chaos", "calm")}
    for folder in folders.values():
        (folder / "nodes").mkdir(parents=True)
    command = f"{RUN} {asked.overrides}"
    started = time.monotonic()
    with local_cluster(folders["chaos"] / "nodes", nodes=3) as cluster:
        killed = disturbed(command, folders["chaos"], cluster, asked.minutes * 60, random.Random(asked.seed))
    seconds = {"chaos": time.monotonic() - started}
    started = time.monotonic()
    with local_cluster(folders["calm"] / "nodes", nodes=3) as cluster:
        process = start(command, folders["calm"], cluster)
        assert process.wait() == 0, (folders["calm"] / "log.txt").read_text()
    seconds["calm"] = time.monotonic() - started
    found, expected = (result(folders[name]) for name in ("chaos", "calm"))
    same = {name: found[name] == expected[name] for name in ("keep", "batches")}
    worst = max(abs(found["metrics"][name] - value) for name, value in expected["metrics"].items())
    print(f"killed: {dict(killed)}; {seconds['chaos']:.0f} s against {seconds['calm']:.0f} s undisturbed")
    print(f"the same keep list: {same['keep']}; the same batches: {same['batches']}; metrics differ by {worst:.2e}")
    raise SystemExit(not all(same.values()) or worst > 0.01)


def disturbed(command: str, folder: Path, cluster: LocalCluster, seconds: float, rng: random.Random) -> Counter[str]:
    """Kill at random for some seconds, then let the run finish. Return the number of kills of each kind."""
    killed: Counter[str] = Counter()
    process, end = start(command, folder, cluster), time.monotonic() + seconds
    while time.monotonic() < end:
        pause = time.monotonic() + rng.uniform(LEAST_PAUSE, LONGEST_PAUSE)
        while time.monotonic() < pause and process.poll() is None:
            time.sleep(0.2)
        if process.poll() == 0:
            return killed
        if process.poll() is not None:
            process = again(process, command, folder, cluster, killed)
            continue
        victim = rng.choice(VICTIMS)
        if victim == "driver":
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = start(command, folder, cluster)
        elif victim == "node":
            number = rng.randrange(1, len(cluster.nodes))
            kill(cluster.nodes.pop(number))
            cluster.add_node()
        else:
            workers = [one for node in cluster.nodes for one in descendants(node.pid) if is_worker(one)]
            if not workers:
                continue
            rng.choice(workers).kill()
        killed[victim] += 1
        print(f"killed a {victim}", flush=True)
    for _ in range(MOST_STARTS):
        if process.wait() == 0:
            return killed
        process = again(process, command, folder, cluster, killed)
    raise SystemExit(f"the run failed {MOST_STARTS} times after the last kill")


def again(
    ended: subprocess.Popen[bytes], command: str, folder: Path, cluster: LocalCluster, killed: Counter[str]
) -> subprocess.Popen[bytes]:
    """Restart a command that ended with an error, as a user or a supervisor would."""
    if ended.returncode == USAGE_ERROR:
        raise SystemExit(f"the command has a usage error: {(folder / 'log.txt').read_text()[-300:]}")
    killed["failed and restarted"] += 1
    print(f"failed: {(folder / 'log.txt').read_text()[-300:]}", flush=True)
    return start(command, folder, cluster)


def start(command: str, folder: Path, cluster: LocalCluster) -> subprocess.Popen[bytes]:
    """Start the command as a process on the cluster."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=folder,
            env=environment(**cluster.driver_env),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is a Ray worker: Ray names its processes after the task or actor that they run."""
    try:
        name = " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return False
    return name.startswith("ray::") and not name.startswith(AGENTS)


def result(folder: Path) -> dict:
    """Return the keep list, all global batches and the metrics of a finished run."""
    report, run = (json.loads((folder / "OUT" / name).read_text()) for name in ("report.json", "run.json"))
    (keep,) = [stage["uri"] for stage in run["stages"] if (stage["role"], stage["step"]) == ("keep", "wfpp")]
    batches = {}
    for phase in ("pretrain", "finetune"):
        for place in (folder / "STORE" / phase).glob("*/batches"):
            table = pq.read_table(place)
            seen: dict[int, list[str]] = {}
            for step, key in zip(table["step"].to_pylist(), table["key"].to_pylist(), strict=True):
                seen.setdefault(step, []).append(key)
            batches[phase] = {step: sorted(keys) for step, keys in seen.items()}
    metrics = {
        f"{phase}/{of}/{name}": value
        for phase, sets in report["evaluation"].items()
        for of, numbers in sets.items()
        for name, value in (numbers or {}).items()
        if isinstance(value, float)
    }
    files = {path.name: path.read_bytes() for path in sorted(Path(keep).glob("parts/*.bits"))}
    assert all([files, batches, metrics]), folder
    return {"keep": files, "batches": batches, "metrics": metrics}


if __name__ == "__main__":
    main()
