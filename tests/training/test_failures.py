"""A lack of memory ends training in one line that names what helps, and is not tried again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from orchestrator.config import TrainingConfig
from orchestrator.training import driver
from orchestrator.training.failures import is_out_of_memory, reported
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import start_signals
from orchestrator.training.worker import train_worker
from tests.support.commands import Shell
from tests.support.training_runs import command_of

THREE = ("training.accumulation to more chunks", "training.grad_checkpointing=true", "training.global_batch_size")
NO_MEMORY = "CUDA out of memory. Tried to allocate 4.00 GiB."


def job_of(signals: Any) -> Any:
    return SimpleNamespace(
        name="pretrain", signals=signals, config=SimpleNamespace(training=TrainingConfig(accumulation=2))
    )


def test_a_lack_of_memory_goes_to_the_driver_as_one_line_and_ends_the_group(ray_cluster: str) -> None:
    signals = start_signals()
    with pytest.raises(torch.OutOfMemoryError), reported(job_of(signals)):
        raise torch.OutOfMemoryError(f"{NO_MEMORY}\nGPU 0 has a total capacity of 79.1 GiB")
    line = ray.get(signals.state.remote()).error
    assert line.startswith("pretrain: out of memory with training.accumulation=2, training.grad_checkpointing=false")
    assert all(setting in line for setting in THREE)
    assert line.endswith(NO_MEMORY.rstrip(".")) or line.endswith(NO_MEMORY)
    assert "\n" not in line
    # the next start returns at once: it does not even ask for its rank
    train_worker(job_of(signals))


def test_a_lack_of_memory_inside_of_other_errors_is_found() -> None:
    inner = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    outer = RuntimeError("the loader failed")
    outer.__cause__ = inner
    assert is_out_of_memory(outer)
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"))
    assert is_out_of_memory(RuntimeError("NCCL error: unhandled\nLast error:\nCuda failure 2 'out of memory'"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def run_out_of_memory(loop_config: dict[str, Job]) -> None:
    """A worker with a device that has no memory left at the third step."""
    from orchestrator.clip.train_step import TrainStep

    whole = TrainStep.run

    def run(self: TrainStep, batch: Any, *, lr: float, step: int) -> Any:
        if step == 2:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return whole(self, batch, lr=lr, step=step)

    TrainStep.run = run  # type: ignore[method-assign]
    train_worker(loop_config["job"])


@pytest.mark.slow
def test_a_run_without_memory_ends_in_one_line_and_without_restarts(
    tiny_conf: str, tmp_path: Path, run_command: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["tests"]))
    monkeypatch.setattr(driver, "run_worker", run_out_of_memory)
    done = run_command(f"{command_of(tiny_conf, tmp_path)} training.max_failures=3", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "out of memory" in last
    assert all(setting in last for setting in THREE)
    log = next(tmp_path.rglob("run.log")).read_text()
    assert "restarted with" not in log
