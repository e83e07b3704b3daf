"""The estimates as a user reads them: a row for each stage, and what the numbers stand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add

from orchestrator.config import PlanConfig
from orchestrator.engine.metering import peak_bytes
from orchestrator.engine.role import Role
from orchestrator.engine.stopwatch import duration
from orchestrator.plan.costs import HOUR, Estimate, Estimates
from orchestrator.plan.measurements import Probe, Trained
from orchestrator.plan.rows import Reach

COLUMNS = (
    "stage",
    "pairs, samples",
    "core-hours",
    "GPU-hours",
    "wall",
    "read of pool or sets",
    "largest process",
    "left in the store",
)
NOT_MEASURED = "not measured"
LEAST = 0.001
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def columns(prices: PlanConfig) -> tuple[str, ...]:
    """The table's columns; dollars where a price is set."""
    return (*COLUMNS, "dollars") if _priced(prices) else COLUMNS


def cost_rows(estimates: Estimates, found: Sequence[Reach], prices: PlanConfig) -> list[tuple[str, ...]]:
    """A row for each stage that is still to be computed, and their sum."""
    scales = {one.stage.name: scale(one) for one in found}
    rows = [_row(name, scales[name], estimate, prices) for name, estimate in estimates.by_stage.items()]
    is_whole = all(estimates.by_stage.values()) and not estimates.probe.left_out
    summed = "all of it" if is_whole else "all that was measured"
    return [*rows, _row(summed, "", total(estimates.by_stage.values()), prices)]


def scale(one: Reach) -> str:
    """The samples of a phase, or the pairs that reach a stage; `<`: at most, as filters are still to come."""
    if one.stage.role == Role.EVALUATE:
        return ""
    mark = "" if one.stage.flow.samples else one.mark
    return f"{mark}{one.reached if one.samples is None else one.samples:,}"


def total(estimates: Iterable[Estimate | None]) -> Estimate:
    """The sum of those that were measured; of memory the most."""
    return reduce(add, filter(None, estimates), Estimate())


def _row(name: str, of: str, estimate: Estimate | None, prices: PlanConfig) -> tuple[str, ...]:
    if estimate is None:
        return (name, of, NOT_MEASURED, *[""] * (len(columns(prices)) - 3))
    shown = (
        name,
        of,
        number(estimate.core_hours),
        number(estimate.gpu_hours),
        duration(estimate.wall_hours * HOUR) + (f", {estimate.bound}" if estimate.bound else ""),
        size(estimate.source_bytes),
        size(estimate.memory_bytes),
        size(estimate.store_bytes),
    )
    return (*shown, f"${estimate.dollars(prices):,.2f}") if _priced(prices) else shown


def notes(probe: Probe, estimates: Estimates, found: Sequence[Reach]) -> Iterator[str]:
    """What the estimates stand on, and how training compares with training on everything."""
    on = f"{probe.num_cores:,} cores" + (f" and {probe.num_gpus:,} GPUs" if probe.num_gpus else "")
    yield (
        f"measured on {probe.num_pairs:,} pairs of the pool in {probe.seconds:,.0f} s, for {on}: of the work alone, "
        f"without the starts of processes and most of the waiting for storage; this process took {size(peak_bytes())}"
    )
    missing = [name for name, estimate in estimates.by_stage.items() if estimate is None] + probe.left_out
    if missing:
        yield f"not estimated: {', '.join(missing)}"
    phases = [one for one in found if one.stage.name in probe.phases]
    if phases:
        first = probe.phases[phases[0].stage.name]
        on_gpu = f", {size(first.gpu_bytes)} of a GPU" if first.gpu_bytes else ""
        yield (
            f"training: {first.samples_per_second:,.1f} samples/s by {first.num_workers} workers with "
            f"{first.batch_share:,} pairs of a batch each{on_gpu}" + _cut(first)
        )
        if first.gpu_bytes:
            yield _paced(first, probe, estimates)
        yield _compared(phases, estimates, found)


def _cut(trained: Trained) -> str:
    if trained.batch_share >= trained.full_share:
        return ""
    return f"; the run's workers will have {trained.full_share:,} each, which takes more memory"


def _paced(trained: Trained, probe: Probe, estimates: Estimates) -> str:
    """On GPUs, where pictures are decoded beside them: which of the two the pace is."""
    computed, decoded = trained.samples_per_second / trained.num_workers, estimates.decoded_per_second(trained)
    computed *= probe.num_workers
    slower = "decoding" if decoded < computed else "computing"
    return (
        f"that is computing alone, beside {trained.wait_share:.0%} of waiting for data; the run's "
        f"{probe.num_workers:,} GPUs compute {computed:,.0f} samples/s, its {probe.decoding_cores:,} cores beside them "
        f"decode {decoded:,.0f}: the pace is that of {slower}"
    )


def _compared(phases: Sequence[Reach], estimates: Estimates, found: Sequence[Reach]) -> str:
    names = {one.stage.name for one in phases}
    training = total(estimate for name, estimate in estimates.by_stage.items() if name in names)
    rest = total(estimate for name, estimate in estimates.by_stage.items() if name not in names)
    told = f"wall: {duration(training.wall_hours * HOUR)} of training, {duration(rest.wall_hours * HOUR)} of the rest"
    first = phases[0].stage
    if first.flow.samples:
        return told
    whole = estimates.of_samples(first.name, first.flow.epochs * found[0].left)
    return (
        f"{told}; training for {first.flow.epochs} epochs on every pair would take {duration(whole.wall_hours * HOUR)}"
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


def size(num_bytes: float) -> str:
    """In the largest unit that leaves at least one; empty for nothing at all."""
    if not num_bytes:
        return ""
    for length, unit in BYTES:
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"
