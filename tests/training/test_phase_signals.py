"""The signals between driver and workers, and how a sweep stops its phases."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from orchestrator.training import phase_signals
from orchestrator.training.phase_signals import start_signals, stop_phases, wait_for_first
from tests.support.pools import write_zero_shot
from tests.support.processes import started, wait_for
from tests.support.training_runs import checkpoints, command_of, said


def test_stop_phases_waits_until_every_phase_has_stopped(ray_cluster: str) -> None:
    running, ended = start_signals(), start_signals()
    ray.get(ended.state.remote())

    def train() -> None:
        while not ray.get(running.state.remote()).stop_requested:
            time.sleep(0.05)
        ray.kill(ended)
        time.sleep(0.2)
        ray.get(running.confirm_stop.remote(7))

    worker = threading.Thread(target=train)
    worker.start()
    stop_phases()
    assert ray.get(running.state.remote()).stopped_at == 7
    worker.join()


def test_stop_phases_does_not_wait_forever(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase_signals, "LONGEST_STOP", 0.0)
    waiting = start_signals()
    stop_phases()
    assert ray.get(waiting.state.remote()).stop_requested


@pytest.mark.slow
@pytest.mark.long
def test_a_sigterm_to_a_sweep_writes_a_checkpoint_of_its_trial(tiny_conf: str, tmp_path: Path) -> None:
    write_zero_shot(tmp_path)
    space = "'sweep.space={training.lr: {grid: [1e-3]}}' 'sweep.controls={full: false, random: false}'"
    judged = "evaluation.zero_shot.uri=zs.tar sweep.metric=zero_shot/top1 training.checkpoint_every_steps=10000"
    command = (
        command_of(tiny_conf, tmp_path).replace("orchestrator run", "orchestrator sweep") + " training.num_workers=1"
    )
    with started(f"{command} {space} {judged}", tmp_path) as process:
        wait_for(lambda: list(tmp_path.glob("STORE/pretrain/*/tensorboard/*")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 143, said(tmp_path)
    assert "stopped by SIGTERM; run the same command again with resume=true to resume" in said(tmp_path)
    assert len(checkpoints(tmp_path)) == 1


def test_ranks_wait_for_the_first_without_a_collective(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase_signals, "POLL_SECONDS", 0.02)
    signals, ended = start_signals(), list[int]()

    def wait(rank: int) -> None:
        wait_for_first(signals, "evaluation after step 3", rank)
        ended.append(rank)

    others = [threading.Thread(target=wait, args=(rank,)) for rank in (1, 2)]
    for other in others:
        other.start()
    time.sleep(0.2)
    assert ended == [], "rank 0 has not passed"
    wait(0)
    for other in others:
        other.join(timeout=20)
    assert sorted(ended) == [0, 1, 2]
    assert not ray.get(signals.has_passed.remote("evaluation after step 4"))
    # after a restart, the same evaluation may come again
    ray.get(signals.start_group.remote())
    assert not ray.get(signals.has_passed.remote("evaluation after step 3"))
