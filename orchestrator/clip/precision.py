"""The precision of the computation: fp32, bf16 autocast, or fp16 autocast with a loss scaler (GPUs only).

In fp32, the towers use TensorFloat32 on GPUs: products of numbers with 10 bits after the point, summed in float32.
Logits, scores and ranks keep all 23 bits: logits reach 100, where TensorFloat32 errs by up to .05."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from orchestrator.clip.recipe import Precision, Recipe

AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(precision: str, device: torch.device) -> None:
    """Check a precision. Errors: `ValueError` for an unknown precision, or for fp16 without a GPU (no loss scaling)."""
    if precision not in AUTOCAST_DTYPES:
        raise ValueError(f"unknown precision {precision!r}: valid are {', '.join(AUTOCAST_DTYPES)}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 needs a GPU, this is device {device.type!r}: use bf16 or fp32")


def native(device: torch.device) -> Precision:
    """Return the precision that the device computes fast: bf16, else fp16 on a GPU and fp32 on a CPU.

    A device without bf16 emulates it, which made a step of a small ResNet ten times as long."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.amp.autocast:
    """Return the context of a forward pass; for fp32 it does nothing."""
    return torch.amp.autocast(device.type, dtype=AUTOCAST_DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler of fp16; for other precisions, one that changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def uses_tf32(recipe: Recipe, device: torch.device) -> bool:
    """Whether the towers of a recipe use TensorFloat32 on a device."""
    return recipe.tf32 and recipe.precision == "fp32" and device.type == "cuda"


@contextmanager
def matmuls(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Set the precision of float32 matrix products on GPUs inside the block: `high` is TensorFloat32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
