"""Copies of the state of a model and its optimiser, and how to restore it.

State is whole tensors under the parameters' own names. So it can be restored on any number of ranks, with DDP or FSDP,
compiled or not."""

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
from orchestrator.clip.parallel import full, local

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return a copy of parameters and buffers; under FSDP every rank calls it and only rank 0 gets it."""
    return _apart(get_model_state_dict(model, options=GATHERED), _memory(model))


def optimiser_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Return a copy of the moments by parameter, None before the first step; under FSDP as `model_state`."""
    # without moments, torch would take a step to create them, and count that step
    if not optimiser.state:
        return None
    moments = [value for state in optimiser.state.values() for value in state.values() if torch.is_tensor(value)]
    return _apart(get_optimizer_state_dict(model, optimiser, options=GATHERED), {_address(one) for one in moments})


def restore_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load what `model_state` returned, on every rank."""
    # a copy of the dict: torch shards its values in place
    set_model_state_dict(model, dict(saved), options=SPREAD)


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, saved: dict[str, Any] | None) -> None:
    """Load what `optimiser_state` returned, on every rank."""
    if saved is None:
        optimiser.state.clear()
    else:
        set_optimizer_state_dict(model, optimiser, optim_state_dict=_for_optimiser(saved, model), options=SPREAD)


def skeleton(model: Model) -> Model:
    """Return a copy of the model without memory for its weights; `filled` puts weights into it."""
    without_memory: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in model.parameters()
    }
    return deepcopy(model, without_memory)


def filled(empty: Model, model: nn.Module, averages: dict[str, torch.Tensor]) -> Model:
    """Return a plain model on the CPU with copies of the weights and buffers of `model`.

    `averages` replace the weights of the same names. Under FSDP every rank calls it and gets the model."""
    weights = {name: full(tensor) for name, tensor in model.state_dict().items()}
    copy = deepcopy(empty)
    copy.load_state_dict(weights | averages, assign=True)
    return copy.to(memory_format=torch.channels_last)


def _apart(state: dict[str, Any], memory: set[int]) -> dict[str, Any]:
    """Return the state with copies of the tensors that use `memory`, the addresses of what training changes.

    torch returns tensors that are on the CPU already as they are; those of a GPU are copies."""
    return tree_map_only(torch.Tensor, lambda one: one.clone() if _address(one) in memory else one, state)


def _for_optimiser(saved: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    # on a CPU the optimiser would use the same tensors and change them; and the number of steps stays on the CPU
    on_cpu = any(weight.device.type == "cpu" for weight in model.parameters())
    return tree_map_only(torch.Tensor, lambda one: one.clone() if on_cpu or one.ndim == 0 else one, saved)


def _memory(model: nn.Module) -> set[int]:
    return {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}


def _address(tensor: torch.Tensor) -> int:
    return local(tensor).untyped_storage().data_ptr()
