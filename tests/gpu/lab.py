"""The place of an experiment: a device, real or tiny sizes, and calls for what only a CUDA device can do.

On a CPU these calls do nothing, so every line of a section runs there too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

Size = TypeVar("Size")
GIB = 2**30
# about a millisecond on the GPUs of these years; a sleep only has to be long compared with a kernel
CYCLES_PER_MS = 1_500_000


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where sections run. `is_dry`: on a CPU, with tiny sizes; the figures then mean nothing."""

    is_dry: bool
    scratch: Path
    end: float = float("inf")

    @property
    def device(self) -> torch.device:
        """The GPU, or the CPU in a dry run."""
        return torch.device("cpu") if self.is_dry else torch.device("cuda", 0)

    def until(self, end: float) -> Lab:
        """Return the lab with a deadline, in seconds of `time.monotonic`."""
        return replace(self, end=end)

    @property
    def seconds_left(self) -> float:
        """Seconds until the section's process is stopped."""
        return self.end - time.monotonic()

    def size(self, real: Size, tiny: Size) -> Size:
        """Return the real value on a GPU, the tiny one in a dry run."""
        return tiny if self.is_dry else real

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def sleep(self, milliseconds: float) -> None:
        """Queue a kernel that sleeps on the current stream."""
        if not self.is_dry:
            torch.cuda._sleep(int(milliseconds * CYCLES_PER_MS))

    def free(self) -> None:
        """Give unused memory back to the device and start a new peak."""
        if not self.is_dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def held_gib(self) -> float:
        """Return the GiB of tensors on the device."""
        return 0.0 if self.is_dry else torch.cuda.memory_allocated() / GIB

    def peak_gib(self) -> float:
        """Return the most GiB of tensors on the device since `free`."""
        return 0.0 if self.is_dry else torch.cuda.max_memory_allocated() / GIB

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in page-locked memory, as a feed gives it."""
        return tensor if self.is_dry else tensor.pin_memory()

    @contextmanager
    def refused_waits(self) -> Iterator[None]:
        """Within the block, a call that waits for the device raises `RuntimeError`."""
        if self.is_dry:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def seconds(self, call: Callable[[], object], *, repeats: int) -> float:
        """Return the seconds of a call: the mean of calls in a row, from an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - start) / repeats

    def median_seconds(self, call: Callable[[], object], *, rounds: int) -> float:
        """Return the median over single calls, each from an idle device to an idle device, after one that warms up."""
        call()
        return median(self.seconds(call, repeats=1) for _ in range(rounds))
