"""Random numbers that are a function of their purpose: a seed, a pair's key, a patch.

SplitMix64's finaliser (Steele, Lea, Flood 2014) over int64, with products that wrap, folds any integers into one that
looks random. Dropout draws from torch's generators, so these are seeded for each chunk of each step and restored
afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB as signed numbers
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def mix(*parts: torch.Tensor | int) -> torch.Tensor:
    """Return a hash of integers, int64 in the broadcast shape of the parts, on their device. All ints: a scalar."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        state = _finalise((state ^ part) + GOLDEN)
    return state


def _finalise(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, bits: int) -> torch.Tensor:
    # torch's shift copies the sign bit; SplitMix64 shifts in zeros
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def draws(model: nn.Module) -> bool:
    """Whether a forward pass in training mode draws random numbers: dropout, stochastic depth, attention dropout."""
    return any(_drop_share(module) > 0 for module in model.modules())


def _drop_share(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout
    # timm's attribute of DropPath and DropBlock, where it may be None
    return getattr(module, "drop_prob", None) or 0.0


@contextmanager
def seeded(device: torch.device, *parts: int) -> Iterator[None]:
    """Seed torch's generators from `parts` inside the block and restore them after it."""
    seed = int(mix(*parts))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
