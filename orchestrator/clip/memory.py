"""Choose how a rank computes its share of a batch so that it fits into the memory of its device.

The peak of a step with a share of n pairs, in chunks of m pairs, among N pairs of all ranks:

    weights, gradients, moments, average + waiting images + activations(m) + logits        in one chunk
    weights, gradients, moments, average + waiting images + features + max(activations(m), logits)   in more

`activations` are measured (`activations.py`), the rest follows from shapes. Tried in the order of their cost: all at
once; the loss some rows at a time; the fewest chunks that fit; then gradient checkpointing as well. Chunks and
checkpointing each cost one more forward pass. The batch stays the same, and so do loss and gradients but for rounding
(a relative 1e-5 of the loss in float32, 1e-2 in bf16)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from orchestrator.clip import activations, locking
from orchestrator.clip.activations import Activations
from orchestrator.clip.model import Clip, side
from orchestrator.clip.recipe import LossName, Recipe

FLOAT_BYTES = 4
# copies of the logits at the peak of the loss, and of their rows if it is computed by rows; measured by a test
LOSS_COPIES: dict[LossName, float] = {"clip": 4.1, "siglip": 6.3}
# batches of images on the device: the one in work and those that are loaded ahead
BATCHES_ON_DEVICE = 3
# smaller chunks keep a GPU less busy than gradient checkpointing does
LEAST_CHUNK = 64
# the rest is for fragments and workspaces; and what NCCL allocates at its first exchange
USABLE_SHARE, EXCHANGE_BYTES = 0.92, 1e9
MOST_ROWS, LEAST_ROWS = 1024, 64


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The memory of one rank's step for a model and a recipe.

    `weights`, `trained`: bytes of all and of the trainable parameters. `image_bytes`: of a pair's pixels. `plain`,
    `checkpointed`: the activations of the recipe, and those with gradient checkpointing (None: not measured, or the
    towers do not support it). `slots`: pairs of the rank in a batch; `dim`: length of a feature."""

    weights: int
    trained: int
    image_bytes: int
    plain: Activations
    checkpointed: Activations | None
    slots: int
    num_ranks: int
    dim: int

    def fixed(self, recipe: Recipe) -> float:
        """Return the bytes of weights, gradients, two moments and the average; FSDP shards all of them."""
        states = self.weights + (3 + (recipe.ema_decay is not None)) * self.trained
        return states / (self.num_ranks if recipe.parallel == "fsdp" else 1)

    def logits(self, recipe: Recipe) -> float:
        """Return the bytes of the logits at the peak of the loss."""
        total = self.slots * self.num_ranks
        is_local = recipe.local_loss or recipe.loss == "siglip"
        rows = min(recipe.loss_rows or total, self.slots if is_local else total)
        return LOSS_COPIES[recipe.loss] * rows * total * FLOAT_BYTES

    def peak(self, recipe: Recipe) -> float:
        """Return the estimated peak bytes of a step."""
        passes = self.checkpointed if recipe.grad_checkpointing and self.checkpointed else self.plain
        chunk = passes.bytes(-(-self.slots // recipe.accumulation))
        waiting = BATCHES_ON_DEVICE * self.slots * self.image_bytes
        # the features of all ranks, their gradients, and the leaves that chunks need
        features = 6 * self.slots * self.num_ranks * self.dim * FLOAT_BYTES
        logits = self.logits(recipe)
        return (
            self.fixed(recipe)
            + waiting
            + features
            + (chunk + logits if recipe.accumulation == 1 else max(chunk, logits))
        )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The recipe that was chosen, the estimated peak bytes of its step, those of a step without chunks, and the bytes
    that it may use."""

    recipe: Recipe
    num_bytes: float
    at_once: float
    budget: float

    @property
    def order(self) -> tuple[bool, int, int]:
        """The place of the choice among all choices: the later, the less memory and the more work."""
        return self.recipe.grad_checkpointing, self.recipe.accumulation, -(self.recipe.loss_rows or sys.maxsize)

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the budget."""
        return self.num_bytes <= self.budget

    def __str__(self) -> str:
        rows = f", {self.recipe.loss_rows:,} rows of logits at a time" if self.recipe.loss_rows else ""
        chunks = f"training.accumulation={self.recipe.accumulation}"
        checkpointing = ", with gradient checkpointing" if self.recipe.grad_checkpointing else ""
        return (
            f"{chunks}{checkpointing}{rows}: about {self.num_bytes / 1e9:.1f} GB of the {self.budget / 1e9:.1f} GB "
            f"that a worker can use ({self.at_once / 1e9:.1f} GB all at once)"
        )


def fit(
    clip: Clip,
    recipe: Recipe,
    device: torch.device,
    *,
    slots: int,
    num_ranks: int,
    budget: Callable[[], float],
    chunks: bool,
    rows: bool,
) -> Fit:
    """Measure the model on a device and return the cheapest way to compute a rank's `slots` pairs that fits.

    `budget` gives the bytes that a step may use, after the measurement. chunks, rows: as in `choose`. Errors: those of
    `activations.measure`."""
    measured = step_memory(clip, recipe, device, slots=slots, num_ranks=num_ranks)
    allowed = budget()
    found = choose(measured, recipe, allowed, chunks=chunks, rows=rows)
    is_enough = found.fits and -(-slots // found.recipe.accumulation) >= min(slots, LEAST_CHUNK)
    if is_enough or not chunks or recipe.grad_checkpointing:
        return found
    checkpointed = activations.measure(clip, replace(recipe, grad_checkpointing=True), device)
    if checkpointed.per_pair >= measured.plain.per_pair:
        return found
    return choose(replace(measured, checkpointed=checkpointed), recipe, allowed, chunks=chunks, rows=rows)


def step_memory(
    clip: Clip, recipe: Recipe, device: torch.device, *, slots: int, num_ranks: int, num_tokens: int | None = None
) -> StepMemory:
    """Measure the memory of a step of the recipe; `activations.measure` has the arguments and the errors."""
    plain = activations.measure(clip, recipe, device, num_tokens=num_tokens)
    weights = list(clip.model.parameters())
    num_bytes = sum(weight.numel() for weight in weights) * FLOAT_BYTES
    return StepMemory(
        weights=num_bytes,
        # locking happens later: all of them is the upper bound
        trained=num_bytes,
        image_bytes=3 * side(clip.preprocess_cfg["size"]) ** 2,
        plain=plain,
        checkpointed=None,
        slots=slots,
        num_ranks=num_ranks,
        dim=clip.model_cfg["embed_dim"],
    )


def budget(num_bytes: float, *, num_ranks: int) -> float:
    """Return the bytes that a step may use of `num_bytes` that are free before the first step."""
    return USABLE_SHARE * num_bytes - (EXCHANGE_BYTES if num_ranks > 1 else 0)


def choose(memory: StepMemory, recipe: Recipe, budget: float, *, chunks: bool, rows: bool) -> Fit:
    """Return the cheapest way to compute the recipe's step that fits into `budget` bytes, or the smallest of all.

    chunks, rows: whether the number of chunks (and checkpointing) and the rows of the loss are free to choose."""
    at_once = memory.peak(replace(recipe, accumulation=1, loss_rows=None))
    smallest = Fit(recipe=recipe, num_bytes=math.inf, at_once=at_once, budget=budget)
    for candidate in _candidates(memory, recipe, chunks=chunks, rows=rows):
        found = replace(smallest, recipe=candidate, num_bytes=memory.peak(candidate))
        if found.fits:
            return found
        smallest = min(smallest, found, key=lambda one: one.num_bytes)
    return smallest


def _candidates(memory: StepMemory, recipe: Recipe, *, chunks: bool, rows: bool) -> Iterator[Recipe]:
    checkpoints = [False, True] if chunks and memory.checkpointed and not recipe.grad_checkpointing else [False]
    for more in checkpoints:
        one = replace(recipe, grad_checkpointing=recipe.grad_checkpointing or more)
        is_last = more or len(checkpoints) == 1
        for number in _numbers(memory.slots, is_last) if chunks else [recipe.accumulation]:
            yield from _with_rows(replace(one, accumulation=number), rows)


def _with_rows(recipe: Recipe, rows: bool) -> Iterator[Recipe]:
    yield recipe
    number = MOST_ROWS
    while rows and number >= LEAST_ROWS:
        yield replace(recipe, loss_rows=number)
        number //= 2


def _numbers(slots: int, to_single_pairs: bool) -> Iterator[int]:
    """Yield numbers of chunks, ascending. Equal chunks come first: a compiled tower is compiled once per size."""
    most = slots if to_single_pairs else max(1, slots // LEAST_CHUNK)
    last = 0
    for number in range(1, most + 1):
        # without a divisor nearby, the last chunk is smaller
        if slots % number == 0 or number >= 2 * last:
            yield number
            last = number


def refusal(clip: Clip, recipe: Recipe) -> str | None:
    """Return why the number of chunks cannot be chosen for a model, None if it can."""
    if not locking.uses_batch_statistics(clip.model, recipe):
        return None
    return (
        "the image tower has batch norms, and in chunks they would see the statistics of a chunk: "
        "training.accumulation=auto stays at 1. If memory is short, set training.global_batch_size, "
        "training.num_workers or training.accumulation"
    )
