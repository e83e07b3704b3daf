"""The estimate of a step's memory, which chooses `training.accumulation=auto`, against what a step takes."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.clip import memory as estimates
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import TrainStep
from tests.gpu.harness import Check, at_least, at_most, equal, figure
from tests.gpu.lab import GIB, Lab
from tests.gpu.models import built, made_up


def memory(lab: Lab) -> Iterator[Check]:
    """The estimated peak of a step is at least the measured one and at most 1.3 times as much; a choice fits."""
    slots = lab.size(1024, 8)
    clip = built(lab, "ViT-B-32")
    recipe = Recipe(precision="bf16")
    clip.model.to(lab.device)
    measured = estimates.step_memory(clip, recipe, lab.device, slots=slots, num_ranks=1, num_tokens=77)
    yield figure("activations of a pair", measured.plain.per_pair / 2**20, "MiB")
    estimate = measured.peak(recipe) / GIB
    got = _peak(lab, recipe, slots)
    yield figure("estimated peak", estimate, "GiB")
    yield figure("measured peak", got, "GiB")
    if not lab.is_dry:
        yield at_least("estimate / measured", estimate / got, 0.95)
        yield at_most("estimate / measured", estimate / got, 1.3)
    # too little for the activations of all pairs: chunks are needed
    budget = measured.peak(recipe) - 0.6 * measured.plain.bytes(slots)
    fit = estimates.choose(measured, recipe, budget, chunks=True, rows=True)
    yield figure("choice for 0.4 of the memory of activations", str(fit))
    yield equal("the choice fits by its estimate", str(fit.fits), "True")
    if not lab.is_dry:
        got = _peak(lab, fit.recipe, slots) * GIB
        yield at_most("measured peak of the choice / the memory it may use", got / budget, 1.0)


def _peak(lab: Lab, recipe: Recipe, slots: int) -> float:
    clip = built(lab, "ViT-B-32")
    lab.free()
    held = lab.held_gib()
    step = TrainStep(clip, recipe, device=lab.device)
    batch = made_up(lab, clip, slots, num_tokens=77)
    for number in range(2):
        step.run(batch, lr=1e-4, step=number)
    return lab.peak_gib() - held
