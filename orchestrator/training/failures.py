"""The errors of a training worker that no restart can fix, and how the driver gets them.

They go to the driver through the signals, as one line. If all ranks see an error, each ends by itself. If only one sees
it, its failure must end the whole group, and the next start then returns at once. A write error of the store can be
temporary: the group restarts from the last checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from orchestrator.errors import UserError, causes, first_line
from orchestrator.storage.files import StoreError
from orchestrator.training.agreement import AgreedError
from orchestrator.training.job import Job

logger = logging.getLogger(__name__)
# what libraries say that have no class for it: cuBLAS, cuDNN, the CUDA runtime (page-locked memory), NCCL, and torch's
# allocator on CPUs
NO_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Cuda failure 2 'out of memory'",
    "can't allocate memory",
    "not enough memory",
)


@contextmanager
def reported(job: Job) -> Iterator[None]:
    """Send an error of the block to the driver if no restart can fix it."""
    try:
        yield
    except AgreedError as error:
        ray.get(job.signals.fail.remote(str(error)))
    except Exception as error:
        logger.exception("%s: worker failed", job.name)
        if is_out_of_memory(error):
            ray.get(job.signals.fail.remote(out_of_memory(job, error)))
        elif isinstance(error, UserError) and not isinstance(error, StoreError):
            # the message of an error from a reading task includes the task's trace; its cause is only the line
            ray.get(job.signals.fail.remote(str(getattr(error, "cause", None) or error)))
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is a lack of memory for tensors."""
    return any(
        isinstance(one, torch.OutOfMemoryError)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in NO_MEMORY))
        for one in causes(error)
    )


def out_of_memory(job: Job, error: BaseException) -> str:
    """Return the line for a lack of memory: what was computed, and the settings that help."""
    training = job.config.training
    return (
        f"{job.name}: out of memory with training.accumulation={training.accumulation}, "
        f"training.grad_checkpointing={str(training.grad_checkpointing).lower()} and "
        f"training.global_batch_size={training.global_batch_size}. Set training.accumulation to more chunks, "
        "training.grad_checkpointing=true, or a smaller training.global_batch_size (or more training.num_workers); "
        f"the same command then resumes. The device said: {first_line(error)}"
    )
