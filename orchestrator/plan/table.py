"""The estimates as a user reads them: a row for each stage, and what the numbers stand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add

from orchestrator.config import PlanConfig
from orchestrator.metering import peak_bytes
from orchestrator.plan.costs import Estimate, Estimates
from orchestrator.plan.probe import Probe
from orchestrator.plan.rows import Reach

COLUMNS = ("stage", "core-hours", "GPU-hours", "wall", "read of the source", "largest process", "left in the store")
NOT_MEASURED = "not measured"
LEAST = 0.001
TIMES = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def columns(prices: PlanConfig) -> tuple[str, ...]:
    """The table's columns; dollars where a price is set."""
    return (*COLUMNS, "dollars") if _priced(prices) else COLUMNS


def cost_rows(estimates: Estimates, prices: PlanConfig) -> list[tuple[str, ...]]:
    """A row for each stage that is still to be computed, and their sum."""
    rows = [_row(name, estimate, prices) for name, estimate in estimates.by_stage.items()]
    return [*rows, _row("all of it", total(estimates.by_stage.values()), prices)]


def total(estimates: Iterable[Estimate | None]) -> Estimate:
    """The sum of those that were measured; of memory the most."""
    return reduce(add, filter(None, estimates), Estimate())


def _row(name: str, estimate: Estimate | None, prices: PlanConfig) -> tuple[str, ...]:
    if estimate is None:
        return (name, NOT_MEASURED, *[""] * (len(columns(prices)) - 2))
    shown = (
        name,
        number(estimate.core_hours),
        number(estimate.gpu_hours),
        duration(estimate.wall_hours * 3600),
        size(estimate.source_bytes),
        size(estimate.memory_bytes),
        size(estimate.store_bytes),
    )
    return (*shown, f"${estimate.dollars(prices):,.2f}") if _priced(prices) else shown


def notes(probe: Probe, estimates: Estimates, found: Sequence[Reach]) -> Iterator[str]:
    """What the estimates stand on, and what pruning saves."""
    on = f"{probe.num_cores:,} cores" + (f" and {probe.num_gpus:,} GPUs" if probe.num_gpus else "")
    yield (
        f"measured on {probe.num_pairs:,} pairs of the pool in {probe.seconds:,.0f} s, for {on}: of the work alone, "
        f"without the starts of processes; the driver, {size(peak_bytes())} here, does not grow with the pool"
    )
    for name, trained in list(probe.phases.items())[:1]:
        yield (
            f"{name}: {trained.samples_per_second:,.1f} samples/s by {trained.num_workers} worker(s) at "
            f"{trained.batch_size:,} a worker" + (f", {size(trained.gpu_bytes)} of a GPU" if trained.gpu_bytes else "")
        )
        yield _saved(name, estimates, found)


def _saved(name: str, estimates: Estimates, found: Sequence[Reach]) -> str:
    of_phases = {one.stage.name: estimates.by_stage.get(one.stage.name) for one in found if one.stage.epochs}
    before = [one for name, one in estimates.by_stage.items() if name not in of_phases]
    (first,) = [one for one in found if one.stage.name == name]
    whole = estimates.of_samples(name, first.stage.epochs * found[0].left)
    return (
        f"wall, training as long on every pair: {duration(whole.wall_hours * 3600)}; this run's training: "
        f"{duration(total(of_phases.values()).wall_hours * 3600)}, and what it takes to prune: "
        f"{duration(total(before).wall_hours * 3600)}"
    )


def _priced(prices: PlanConfig) -> bool:
    return prices.core_hour_price is not None or prices.gpu_hour_price is not None


def number(value: float) -> str:
    """Three digits, or all before the point; empty for nothing at all."""
    if not value:
        return ""
    if value < LEAST:
        return f"<{LEAST:g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """In the largest unit that leaves at least one."""
    for length, unit in TIMES:
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return "<1 s"


def size(num_bytes: float) -> str:
    """In the largest unit that leaves at least one; empty for nothing at all."""
    if not num_bytes:
        return ""
    for length, unit in BYTES:
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"
