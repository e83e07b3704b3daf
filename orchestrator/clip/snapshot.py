"""A model, its optimiser and what belongs to them, taken out of and put back into however they run.

Everything is kept as whole tensors under the parameters' own names, so that any number of ranks, DDP or FSDP, compiled
or not, takes it up again."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_map_only

from orchestrator.clip.model import Model
from orchestrator.clip.sharding import full

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True)


def model_state(model: nn.Module) -> dict[str, Any]:
    """A copy of parameters and buffers; under FSDP every rank calls it and rank 0 alone gets it."""
    return _copied(get_model_state_dict(model, options=GATHERED))


def optimiser_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """A copy of the moments by parameter, None before the first step; under FSDP as `model_state`."""
    # asked for moments that are not there yet, torch makes them by a step, and counts it
    return _copied(get_optimizer_state_dict(model, optimiser, options=GATHERED)) if optimiser.state else None


def restore_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Put `model_state` in, on every rank."""
    # torch shards what it is given in place
    set_model_state_dict(model, dict(saved), options=SPREAD)


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, saved: dict[str, Any] | None) -> None:
    """Put `optimiser_state` in, on every rank."""
    if saved is None:
        optimiser.state.clear()
    else:
        # on a CPU the optimiser would go on with the very tensors it is given
        set_optimizer_state_dict(model, optimiser, optim_state_dict=_copied(saved), options=SPREAD)


def skeleton(model: Model) -> Model:
    """A copy of the model as it is now without the memory of its weights: what `filled` puts weights into."""
    without_memory: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in model.parameters()
    }
    return deepcopy(model, without_memory)


def filled(bones: Model, model: nn.Module, averages: dict[str, torch.Tensor]) -> Model:
    """A plain model on the CPU with copies of the weights and buffers of `model`, `averages` in place of those weights
    that they name. Under FSDP every rank calls it, and gets it."""
    weights = {name: full(tensor) for name, tensor in model.state_dict().items()}
    copy = deepcopy(bones)
    copy.load_state_dict(weights | averages, assign=True)
    return copy.to(memory_format=torch.channels_last)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    # what already is on the CPU is handed on as it is, and later steps would change it
    return tree_map_only(torch.Tensor, torch.clone, state)
