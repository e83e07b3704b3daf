"""Measure the memory of the towers' forward and backward pass as a function of the number of pairs.

The passes run at two sizes. On a GPU they run for real, and torch's allocator counts the peak. Elsewhere they run on
fake tensors, which have a shape, a type and a device but no memory: `_LiveBytes` adds up the tensors that are alive.
So the memory on a GPU can be estimated without one. Fake tensors follow the GPU's autocast and its attention kernels,
but have no cuBLAS workspace, no rounding to blocks and no fusion by `torch.compile`, which can only save memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orchestrator.clip import locking, parallel, patch_dropout
from orchestrator.clip import precision as precisions
from orchestrator.clip.model import Clip, Model, side
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.towers import Outputs, Towers, end_of_text

# pairs of the two passes; a real pass has to fit into what is free
REAL_SIZES, FAKE_SIZES = (16, 48), (1024, 2048)
# functions for which autocast on GPUs, but not on CPUs, casts its input to float32
FLOAT32_ON_GPUS = (F.layer_norm, F.group_norm, F.softmax, torch.softmax)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Peak bytes of a pass over n pairs, without weights and their gradients: `fixed` + n * `per_pair`."""

    fixed: int
    per_pair: float

    def bytes(self, pairs: int) -> float:
        """Return the peak bytes of a pass over some pairs."""
        return self.fixed + pairs * self.per_pair


def measure(clip: Clip, recipe: Recipe, device: torch.device, *, num_tokens: int | None = None) -> Activations:
    """Return the activations of a model on a device; a GPU that torch does not see is simulated.

    Captions have `num_tokens` tokens if the recipe trims them, otherwise (or None) the model's full context. The
    model, its device, its gradients and the random state stay as they are. Errors: `RuntimeError` for a model that fake
    tensors cannot run; `torch.OutOfMemoryError` if even a small pass does not fit."""
    is_real = device.type == "cuda" and torch.cuda.is_available()
    peak = _real_peak if is_real else _fake_peak
    small, large = REAL_SIZES if is_real else FAKE_SIZES
    low, high = (peak(clip, recipe, device, pairs, num_tokens) for pairs in (small, large))
    per_pair = max(0.0, (high - low) / (large - small))
    return Activations(fixed=max(0, round(low - small * per_pair)), per_pair=per_pair)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of the tensors that a call makes: by torch's allocator on a GPU, else by counting."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as live:
        call()
    return live.peak


def _real_peak(clip: Clip, recipe: Recipe, device: torch.device, pairs: int, num_tokens: int | None) -> int:
    with torch.random.fork_rng(devices=[device]):
        towers = _towers(clip, recipe, device)

        def call() -> None:
            _pass(clip, towers, recipe, device, pairs, num_tokens)

        # the first one allocates the workspaces of cuBLAS, which stay
        call()
        return peak_bytes(call, device)


def _fake_peak(clip: Clip, recipe: Recipe, device: torch.device, pairs: int, num_tokens: int | None) -> int:
    cpu = torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        towers = _towers(clip, recipe, cpu)
        _use_kernels_of(device, towers)
        return peak_bytes(lambda: _pass(clip, towers, recipe, cpu, pairs, num_tokens), cpu)


def _use_kernels_of(device: torch.device, towers: Towers) -> None:
    kernels = _KernelsOf(device)

    def within(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with kernels:
                return forward(*args, **kwargs)

        return call

    # each block too: checkpointing calls it again in the backward pass, which runs outside of the towers' forward
    for module in (towers, *parallel.blocks(towers)):
        module.forward = within(module.forward)


def _towers(clip: Clip, recipe: Recipe, device: torch.device) -> Towers:
    """Return the towers of a training step as a copy with weights of any values, and with zero gradients."""
    model = _copy(clip.model, device)
    locking.lock(model, recipe)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing()
    patch_dropout.install(model.visual, recipe.patch_dropout)
    for weight in model.parameters():
        # a pass adds to the gradients, as in training: they are not activations
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    return Towers(model, trim_captions=recipe.trim_captions).train()


def _copy(model: Model, device: torch.device) -> Model:
    memory: dict[int, Any] = {
        id(weight): nn.Parameter(torch.zeros_like(weight, device=device), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    memory |= {id(buffer): torch.zeros_like(buffer, device=device) for buffer in model.buffers()}
    return deepcopy(model, memory)


def _pass(clip: Clip, towers: Towers, recipe: Recipe, device: torch.device, pairs: int, num_tokens: int | None) -> None:
    size, context = side(clip.preprocess_cfg["size"]), clip.model_cfg["text_cfg"]["context_length"]
    if num_tokens is not None and recipe.trim_captions and end_of_text(clip.model) is not None:
        context = min(context, num_tokens)
    images = torch.zeros((pairs, 3, size, size), dtype=torch.uint8, device=device)
    texts = torch.zeros((pairs, context), dtype=torch.int64, device=device)
    kept = None
    if towers.patch_dropouts:
        dropout = towers.patch_dropouts[0]
        kept = torch.zeros((pairs, dropout.num_kept), dtype=torch.int64, device=device)
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], device)
    with precisions.autocast(recipe.precision, device):
        outputs: Outputs = towers(normalise(images), texts, kept)
    features = [feature for feature in (outputs.images, outputs.texts) if feature.requires_grad]
    torch.autograd.backward(features, [torch.zeros_like(feature) for feature in features])


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made inside the block that are alive, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {self._key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self._key(tensor) not in before:
                self._add(tensor.untyped_storage())
        return result

    def _key(self, tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self._remove, key, num_bytes)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def _remove(self, key: int, num_bytes: int) -> None:
        del self.known[key]
        self.live -= num_bytes


class _KernelsOf(TorchFunctionMode):
    """Gives fake tensors on the CPU the memory of a device's kernels.

    Attention is fused: otherwise its maps would be kept. Under a GPU's autocast, norms and softmax take float32."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.on_gpu = device.type == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        if self.on_gpu and func in FLOAT32_ON_GPUS and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **rest: Any,
    ) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(low), key.to(low), value.to(low)
        # without the mask: it does not grow with the batch
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, dropout_p, is_causal)[0]
