"""Profile the parts of a training step in a real `run`; write a table and a chart.

Timers wrap the parts of the real worker: its loader, its train step, the towers. The figures are means of rank 0 over
the steady steps. DDP sends gradients while it computes others, so the cost of the all-reduce is only the time that it
adds. To measure it, every second step runs without all-reduce, and the two means are subtracted. The ranks then have
different weights, and the model is thrown away. Tokenising runs in a thread in parallel with the steps; its time is
shown separately.

    python tests/benchmarks/profile_step.py --out runs/profile
    python tests/benchmarks/profile_step.py --out runs/profile --set model=vit_b_32 training.global_batch_size=64 \\
        training.precision=fp32 --steps 20
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from orchestrator import pipeline
from orchestrator.cli import compose_config
from orchestrator.clip import optimiser, parallel, towers
from orchestrator.clip.train_step import TrainStep
from orchestrator.training import device_loader, driver, worker

WAIT, NORMALISE, IMAGE, TEXT, LOSS = "data wait", "normalise", "image tower", "text tower", "loss"
BACKWARD, EXCHANGE, NORM, OPTIMISER, REST = "backward", "all-reduce", "gradient norm", "optimiser", "everything else"
LOAD, STEP = "make the batch, in parallel with the steps", "step"
PARTS = (WAIT, NORMALISE, IMAGE, TEXT, LOSS, BACKWARD, NORM, OPTIMISER)
SHOWN = (WAIT, NORMALISE, IMAGE, TEXT, LOSS, BACKWARD, EXCHANGE, NORM, OPTIMISER, REST)
NUM_LEFT_OUT = 10

Step = dict[str, float]


class Marks:
    """Timers: seconds by part, for each step."""

    def __init__(self) -> None:
        # the set of keys never changes, because the loader's thread adds to its key at any time
        self.running: Step = dict.fromkeys((*PARTS, LOAD), 0.0)
        self.steps: list[Step] = []
        self.ended = time.perf_counter()
        self.is_first = False

    def on(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function; its time is added to `name`."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.running[name] += time.perf_counter() - started
            return result

        return marked

    def waiting(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the same items; the time until each arrives is added to the wait for data."""
        following = self.on(WAIT, lambda: next(items, None))
        while (item := following()) is not None:
            yield item

    def end_step(self) -> None:
        """Close the record of a step and start the next one."""
        now = time.perf_counter()
        self.steps.append({**self.running, STEP: now - self.ended})
        self.running.update(dict.fromkeys(self.running, 0.0))
        self.ended = now


def mark_train_step(marks: Marks, train_step: TrainStep) -> None:
    """Wrap the parts of a train step with timers, and run every second step without all-reduce."""
    model = train_step.model
    object.__setattr__(model, "encode_image", marks.on(IMAGE, model.encode_image))
    object.__setattr__(model, "encode_text", marks.on(TEXT, model.encode_text))
    train_step.normalise = marks.on(NORMALISE, train_step.normalise)  # type: ignore[assignment]
    train_step.loss = marks.on(LOSS, train_step.loss)  # type: ignore[assignment]
    train_step.scaler.step = marks.on(OPTIMISER, train_step.scaler.step)  # type: ignore[method-assign]
    backward, step = train_step._backward, train_step.run

    def exchanging_every_other(batch: Any, number: int) -> torch.Tensor:
        if number % 2 == 0:
            return backward(batch, number)
        with parallel.no_sync(train_step.wrapped):
            return backward(batch, number)

    def ended(*args: Any, **kwargs: Any) -> Any:
        metrics = step(*args, **kwargs)
        marks.end_step()
        return metrics

    train_step._backward = exchanging_every_other  # type: ignore[method-assign]
    train_step.run = ended  # type: ignore[method-assign]


def marked_worker(loop_config: dict[str, Any], path: str) -> None:
    """Run the real training function of a worker with timers. Rank 0 writes the steps."""
    marks = Marks()
    load, make = worker.load_batches, worker.TrainStep

    def marked_train_step(*args: Any, rank: int, **kwargs: Any) -> TrainStep:
        train_step = make(*args, rank=rank, **kwargs)
        mark_train_step(marks, train_step)
        marks.is_first = rank == 0
        return train_step

    worker.load_batches = lambda *args, **kwargs: marks.waiting(load(*args, **kwargs))  # type: ignore[assignment]
    worker.TrainStep = marked_train_step  # type: ignore[misc, assignment]
    device_loader.loaded_batch = marks.on(LOAD, device_loader.loaded_batch)
    towers.encode_trimmed = marks.on(TEXT, towers.encode_trimmed)
    optimiser.total_norm = marks.on(NORM, optimiser.total_norm)
    torch.Tensor.backward = marks.on(BACKWARD, torch.Tensor.backward)  # type: ignore[method-assign]
    worker.train_worker(loop_config["job"])
    if marks.is_first:
        Path(path).write_text(json.dumps(marks.steps))


def profiled(path: Path, overrides: list[str]) -> list[Step]:
    """Run the pre-training. Return the times of its steps."""
    driver.run_worker = partial(marked_worker, path=str(path))  # type: ignore[assignment]
    pipeline.run(compose_config(overrides))
    return json.loads(path.read_text())


def parts(steps: list[Step]) -> Step:
    """Return the mean milliseconds of each part of a step with all-reduce, and of the whole step."""
    steady = steps[NUM_LEFT_OUT // 2 * 2 :]

    def mean(name: str, some: list[Step]) -> float:
        return 1000 * statistics.mean(step[name] for step in some)

    exchanging, alone = steady[::2], steady[1::2]
    found = {name: mean(name, exchanging) for name in (*PARTS, LOAD, STEP)}
    found[BACKWARD] = mean(BACKWARD, alone)
    found[EXCHANGE] = mean(BACKWARD, exchanging) - found[BACKWARD]
    found[REST] = found[STEP] - sum(mean(name, exchanging) for name in PARTS)
    return found


def table(found: Step) -> str:
    """Return the figures as a Markdown table."""
    rows = [f"| {name} | {found[name]:,.1f} | {found[name] / found[STEP]:.1%} |" for name in SHOWN]
    last = [f"| **{STEP}** | {found[STEP]:,.1f} | |", f"| {LOAD} | {found[LOAD]:,.1f} | |"]
    return "\n".join(["| part of a step | ms | share |", "|---|---|---|", *rows, *last])


def picture(found: Step, title: str, path: Path) -> None:
    """Draw a bar for each part, with milliseconds and share."""
    figure, axes = plt.subplots(figsize=(8, 4.2), constrained_layout=True)
    values = [found[name] for name in SHOWN]
    bars = axes.barh(SHOWN, values, color=["#c0504d" if name == WAIT else "#4f81bd" for name in SHOWN])
    axes.bar_label(bars, [f" {value:,.1f} ms, {value / found[STEP]:.1%}" for value in values], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(right=1.25 * max(values))
    axes.set_xlabel("milliseconds per step")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Write the table and the chart, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder for step_profile.md and step_profile.png"
    )
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings of the run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        off = ["finetune.enabled=false", "evaluation.zero_shot.uri=null", "evaluation.retrieval.uri=null"]
        overrides = ["+exp=demo", f"out={folder}/out", f"store={folder}/store", *off, *arguments.set]
        batch_size = compose_config(overrides).training.global_batch_size
        overrides += [f"training.samples={arguments.steps * batch_size}", "selection.steps=[all]"]
        found = parts(profiled(Path(folder) / "marks.json", overrides))
    (arguments.out / "step_profile.md").write_text(table(found) + "\n")
    title = f"A training step: {' '.join(['demo', *arguments.set])}, batch {batch_size}, rank 0 of the run's workers"
    picture(found, title, arguments.out / "step_profile.png")
    print(table(found))


if __name__ == "__main__":
    main()
