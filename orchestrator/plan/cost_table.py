"""Format the estimates as a table with one row per stage, and as notes on the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add

from orchestrator.config import PlanConfig
from orchestrator.engine.metering import peak_bytes
from orchestrator.engine.role import Role
from orchestrator.engine.stopwatch import duration
from orchestrator.plan.estimates import HOUR, Estimate, Estimates
from orchestrator.plan.measurements import MeasuredPhase, Measurements
from orchestrator.plan.rows import Reach, epochs

COLUMNS = (
    "stage",
    "pairs, samples",
    "core-hours",
    "GPU-hours",
    "wall time",
    "bytes read",
    "peak memory",
    "bytes stored",
)
NOT_MEASURED = "not measured"
LEAST = 0.001
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def columns(prices: PlanConfig) -> tuple[str, ...]:
    """Return the columns of the table, with dollars if a price is set."""
    return (*COLUMNS, "dollars") if _priced(prices) else COLUMNS


def cost_rows(estimates: Estimates, found: Sequence[Reach], prices: PlanConfig) -> list[tuple[str, ...]]:
    """Return a row for each remaining stage, and their sum."""
    scales = {one.stage.name: scale(one) for one in found}
    rows = [_row(name, scales[name], estimate, prices) for name, estimate in estimates.by_stage.items()]
    is_whole = all(estimates.by_stage.values()) and not estimates.measured.left_out
    summed = "total" if is_whole else "total of measured stages"
    return [*rows, _row(summed, "", total(estimates.by_stage.values()), prices)]


def scale(one: Reach) -> str:
    """Return the samples of a phase or the pairs that reach a stage; `<`: at most, because of filters before it."""
    if one.stage.role == Role.EVALUATE:
        return ""
    mark = "" if one.stage.flow.samples else one.mark
    return f"{mark}{one.reached if one.samples is None else one.samples:,}"


def total(estimates: Iterable[Estimate | None]) -> Estimate:
    """Return the sum over the measured stages, and the maximum of their memory."""
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


def notes(measured: Measurements, estimates: Estimates, found: Sequence[Reach]) -> Iterator[str]:
    """Yield notes on the measurements, and a comparison with training on every pair."""
    on = f"{measured.num_cores:,} cores" + (f" and {measured.num_gpus:,} GPUs" if measured.num_gpus else "")
    yield (
        f"measured on {measured.num_pairs:,} pairs of the pool in {measured.seconds:,.0f} s, for {on}; without process "
        f"starts and most of the waiting for storage; memory of this process: {size(peak_bytes())}"
    )
    missing = [name for name, estimate in estimates.by_stage.items() if estimate is None] + measured.left_out
    if missing:
        yield f"not estimated: {', '.join(missing)}"
    yield from measured.remarks
    phases = [one for one in found if one.stage.name in measured.phases]
    if phases:
        first = measured.phases[phases[0].stage.name]
        on_gpu = f", {size(first.gpu_bytes)} of GPU memory" if first.gpu_bytes else ""
        yield (
            f"training: {first.samples_per_second:,.1f} samples/s with {first.num_workers} workers and "
            f"{first.batch_share:,} pairs per worker and batch{on_gpu}" + _full_share(first)
        )
        if first.gpu_bytes:
            yield _pace_limit(first, measured, estimates)
        yield _compared(phases, estimates, found)


def _full_share(trained: MeasuredPhase) -> str:
    if trained.extrapolated:
        return (
            f"; in the run {trained.full_share:,} pairs per worker and batch: the pace is extrapolated from single "
            "steps on fewer pairs, as a phase of the run does not fit into the time of the probe"
        )
    if trained.batch_share >= trained.full_share:
        return ""
    return (
        f"; in the run {trained.full_share:,} pairs per worker and batch, which needs more memory: the pace is "
        "extrapolated from the smaller batches"
    )


def _pace_limit(trained: MeasuredPhase, measured: Measurements, estimates: Estimates) -> str:
    """Say whether computing on the GPUs or decoding on the cores limits the pace."""
    computed, decoded = trained.samples_per_second / trained.num_workers, estimates.decoded_per_second(trained)
    computed *= measured.num_workers
    slower = "decoding" if decoded < computed else "computing"
    waited = "excludes" if trained.waits_for_cores else "includes"
    return (
        f"this pace {waited} {trained.wait_share:.0%} of the time, spent waiting for data; in the run "
        f"{measured.num_workers:,} GPUs compute {computed:,.0f} samples/s and {measured.decoding_cores:,} cores decode "
        f"{decoded:,.0f} samples/s: {slower} limits the pace"
    )


def _compared(phases: Sequence[Reach], estimates: Estimates, found: Sequence[Reach]) -> str:
    names = {one.stage.name for one in phases}
    training = total(estimate for name, estimate in estimates.by_stage.items() if name in names)
    rest = total(estimate for name, estimate in estimates.by_stage.items() if name not in names)
    in_training, in_rest = duration(training.wall_hours * HOUR), duration(rest.wall_hours * HOUR)
    times = f"wall time: {in_training} for training, {in_rest} for the rest"
    first = phases[0].stage
    if first.flow.samples:
        return times
    whole = estimates.of_samples(first.name, first.flow.epochs * found[0].left)
    full = duration(whole.wall_hours * HOUR)
    return f"{times}; training for {epochs(first.flow.epochs)} on every pair would take {full}"


def _priced(prices: PlanConfig) -> bool:
    return prices.core_hour_price is not None or prices.gpu_hour_price is not None


def number(value: float) -> str:
    """Format with three significant digits, or all digits of a larger integer part; empty for 0."""
    if not value:
        return ""
    if value < LEAST:
        return f"<{LEAST:g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Format bytes in the largest unit that gives at least 1; empty for 0."""
    if not num_bytes:
        return ""
    for length, unit in BYTES:
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"
