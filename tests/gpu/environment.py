"""What the machine is: versions, the device, and two rates to compare others with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.gpu.harness import Check, equal, figure
from tests.gpu.lab import GIB, Lab

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "numpy", "pyarrow", "pydantic", "polars", "faiss-gpu",
    "faiss-cpu", "ray", "tokenizers", "tiktoken",
)  # fmt: skip


def environment(lab: Lab) -> Iterator[Check]:
    """Versions of the packages, the device, the rate of a bf16 matrix product and of a copy."""
    yield equal("CUDA is available", str(torch.cuda.is_available()), str(not lab.is_dry))
    found = [f"{name} {got}" for name in PACKAGES if (got := _version(name))]
    yield figure("versions", f"Python {platform.python_version()}, {', '.join(found)}")
    yield figure("cores, load", f"{len(os.sched_getaffinity(0))}, {os.getloadavg()[0]:.1f}")
    if not lab.is_dry:
        device = torch.cuda.get_device_properties(0)
        yield figure(
            "device", f"{device.name}, {device.total_memory / GIB:.0f} GiB, {device.multi_processor_count} SMs"
        )
        yield figure("CUDA, cuDNN, nccl", f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {_nccl()}")
    side = lab.size(8192, 64)
    one, other = (torch.randn(side, side, device=lab.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = lab.median_seconds(lambda: one @ other, rounds=lab.size(10, 2))
    yield figure("bf16 matrix product", 2 * side**3 / seconds / 1e12, "TFLOP/s")
    num_bytes = lab.size(2 * GIB, 2**16)
    host = lab.pinned(torch.zeros(num_bytes, dtype=torch.uint8))
    target = torch.empty_like(host, device=lab.device)
    seconds = lab.median_seconds(lambda: target.copy_(host, non_blocking=True), rounds=3)
    yield figure("copy from page-locked memory", num_bytes / seconds / 1e9, "GB/s")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nccl() -> str:
    return ".".join(str(part) for part in torch.cuda.nccl.version())
