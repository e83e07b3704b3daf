"""Samples/s and peak memory of a training step, beside open_clip_train's own loop: same model, batch and precision.

Both get their batch in page-locked memory in the form that their feed gives: ours uint8 images, theirs normalised
float32 ones. They take turns; the median round counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from tests.gpu.harness import Check, at_least, at_most, figure
from tests.gpu.lab import Lab
from tests.gpu.models import built, made_up, train_step
from tests.gpu.open_clip_side import TheirLoop

ROUNDS = 3
# a round takes about this time
ROUND_SECONDS = 1.0


@dataclass
class _Side:
    """One program: takes steps; what it holds in the device's memory between them."""

    steps: Callable[[int], None]
    held: float
    rates: list[float] = field(default_factory=list)
    peak: float = 0.0


def b32(lab: Lab) -> Iterator[Check]:
    """ViT-B/32, bf16, captions of 77 tokens: at least open_clip_train's samples/s, at most its memory."""
    for size in lab.size((2048, 1024), (4,)):
        yield from _if_it_fits(f"batch {size:,}", _beside(lab, "ViT-B-32", size, num_tokens=77, wanted=1.0))


def b32_large(lab: Lab) -> Iterator[Check]:
    """ViT-B/32, bf16, batch 4,096 with captions of up to 32 tokens: our rate and memory, whole and in two chunks."""
    size = lab.size(4096, 4)
    for chunks in (2, 1):
        yield from _if_it_fits(f"{chunks} chunks", _alone(lab, size, accumulation=chunks))


def _alone(lab: Lab, size: int, *, accumulation: int) -> Iterator[Check]:
    side = _our_side(lab, "ViT-B-32", size, num_tokens=32, precision="bf16", accumulation=accumulation)
    _measure(lab, [side])
    yield figure(f"{accumulation} chunks: rate", median(side.rates) * size, "samples/s")
    yield figure(f"{accumulation} chunks: peak memory", side.peak, "GiB")


def _if_it_fits(what: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield the checks; out of memory is a result, not a failure, as devices differ."""
    try:
        yield from checks
    except torch.OutOfMemoryError:
        yield figure(what, "out of memory")


def b32_short(lab: Lab) -> Iterator[Check]:
    """ViT-B/32, bf16, captions of up to 32 tokens, which we trim: at least 1.2 of open_clip_train's samples/s."""
    yield from _beside(lab, "ViT-B-32", lab.size(2048, 4), num_tokens=32, wanted=1.2)


def b16(lab: Lab) -> Iterator[Check]:
    """ViT-B/16, bf16: at least 1.05 of open_clip_train's samples/s."""
    yield from _beside(lab, "ViT-B-16", lab.size(512, 4), num_tokens=77, wanted=1.05)


def compiled(lab: Lab) -> Iterator[Check]:
    """ViT-B/32, bf16, batch 2,048: the step with `compile`, against the step without."""
    size, rates = lab.size(2048, 4), []
    for is_compiled in (False, True):
        start = time.monotonic()
        # there may be no C++ compiler in a dry run
        side = _our_side(lab, "ViT-B-32", size, precision="bf16", compile=is_compiled and not lab.is_dry)
        yield figure(f"compile={is_compiled}: until the end of the first step", time.monotonic() - start, "s")
        _measure(lab, [side])
        rates.append(median(side.rates) * size)
        yield figure(f"compile={is_compiled}: rate", rates[-1], "samples/s")
        yield figure(f"compile={is_compiled}: peak memory", side.peak, "GiB")
        del side
        lab.free()
    yield figure("compiled / not compiled", rates[1] / rates[0])


def tf32(lab: Lab) -> Iterator[Check]:
    """ViT-B/32, fp32, batch 512: the step with TF32 in the towers, against the step in full fp32."""
    size, rates = lab.size(512, 4), []
    for is_used in (False, True):
        side = _our_side(lab, "ViT-B-32", size, precision="fp32", tf32=is_used)
        _measure(lab, [side])
        rates.append(median(side.rates) * size)
        yield figure(f"tf32={is_used}", rates[-1], "samples/s")
    if not lab.is_dry:
        yield at_least("TF32 / full fp32", rates[1] / rates[0], 1.5)


def _beside(lab: Lab, name: str, size: int, *, num_tokens: int, wanted: float) -> Iterator[Check]:
    ours = _our_side(lab, name, size, num_tokens=num_tokens, precision="bf16")
    theirs = _their_side(lab, name, size, num_tokens=num_tokens)
    _measure(lab, [ours, theirs])
    label = f"batch {size:,}"
    yield figure(f"{label}: ours", median(ours.rates) * size, "samples/s")
    yield figure(f"{label}: open_clip_train", median(theirs.rates) * size, "samples/s")
    yield figure(f"{label}: peak memory, ours", ours.peak, "GiB")
    yield figure(f"{label}: peak memory, open_clip_train", theirs.peak, "GiB")
    if not lab.is_dry:
        yield at_least(f"{label}: ours / open_clip_train", median(ours.rates) / median(theirs.rates), wanted)
        yield at_most(f"{label}: our peak memory / open_clip_train's", ours.peak / theirs.peak, 1.0)
    del ours, theirs
    lab.free()


def _our_side(lab: Lab, name: str, size: int, *, num_tokens: int = 77, **recipe: Any) -> _Side:
    before = lab.held_gib()
    step = train_step(lab, name, **recipe)
    batch = made_up(lab, step.clip, size, num_tokens=num_tokens)

    def steps(num_steps: int) -> None:
        for number in range(num_steps):
            step.run(batch, lr=1e-4, step=number)

    return _started(lab, steps, before)


def _their_side(lab: Lab, name: str, size: int, *, num_tokens: int) -> _Side:
    before = lab.held_gib()
    loop = TheirLoop(lab, built(lab, name), precision="amp_bf16")
    pair = loop.pair(made_up(lab, loop.clip, size, num_tokens=num_tokens))
    return _started(lab, lambda num_steps: loop.run(pair, num_steps), before)


def _started(lab: Lab, steps: Callable[[int], None], held_before: float) -> _Side:
    # the first step builds the state of the optimiser
    steps(1)
    lab.wait()
    return _Side(steps, held=lab.held_gib() - held_before)


def _measure(lab: Lab, sides: list[_Side]) -> None:
    """Let the sides take turns; fill in steps/s of each round and the peak without what the other sides hold."""
    held, num_steps = sum(side.held for side in sides), []
    for side in sides:
        side.steps(lab.size(3, 1))
        num_steps.append(max(1, round(ROUND_SECONDS / lab.seconds(partial(side.steps, 1), repeats=1))))
    for _ in range(lab.size(ROUNDS, 1)):
        for side, count in zip(sides, num_steps, strict=True):
            lab.free()
            count = lab.size(count, 1)
            side.rates.append(count / lab.seconds(partial(side.steps, count), repeats=1))
            side.peak = max(side.peak, lab.peak_gib() - (held - side.held))
