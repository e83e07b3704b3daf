"""From what a probe measured to what a run would take: every stage's share, scaled to the pairs that reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.artifacts import Artifact
from orchestrator.config import PlanConfig
from orchestrator.metering import Cost
from orchestrator.plan.probe import Measured, Probe, Trained
from orchestrator.plan.rows import Reach
from orchestrator.plan.subset import num_bytes, size_of
from orchestrator.source import Part, Source

HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a stage: hours of cores and GPUs, wall hours on the cluster, bytes read from the source, of the largest
    process, and left in the store."""

    core_hours: float = 0.0
    gpu_hours: float = 0.0
    wall_hours: float = 0.0
    source_bytes: float = 0.0
    memory_bytes: float = 0.0
    store_bytes: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            core_hours=self.core_hours + other.core_hours,
            gpu_hours=self.gpu_hours + other.gpu_hours,
            wall_hours=self.wall_hours + other.wall_hours,
            source_bytes=self.source_bytes + other.source_bytes,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
            store_bytes=self.store_bytes + other.store_bytes,
        )

    def dollars(self, prices: PlanConfig) -> float:
        """At the prices that are set."""
        return self.core_hours * (prices.core_hour_price or 0) + self.gpu_hours * (prices.gpu_hour_price or 0)


class Estimates:
    """Of the stages that are still to be computed, by name."""

    def __init__(self, probe: Probe, source: Source, found: Sequence[Reach], catalog: Artifact):
        self.probe, self.parts, self.catalog = probe, source.parts(), catalog
        self.by_stage: dict[str, Estimate | None] = {}
        for reach in found:
            if not reach.stage.artifact.is_complete():
                self.by_stage[reach.stage.name] = self._of(reach)

    def of_samples(self, phase: str, samples: int) -> Estimate:
        """Of so many samples, trained on as in the phase."""
        return self._training(self.probe.phases[phase], samples)

    def _of(self, reach: Reach) -> Estimate | None:
        name = reach.stage.name
        if name in self.probe.phases:
            return self.of_samples(name, reach.samples or 0)
        measured = self.probe.stages.get(name)
        return self._stage(reach, measured) if measured is not None else None

    def _stage(self, reach: Reach, measured: Measured) -> Estimate:
        is_catalog = reach.stage.artifact == self.catalog
        work = size_of(self.parts) if is_catalog else reach.stage.work(reach.reached)
        factor = work / max(measured.work, 1e-9)
        held = reach.stage.holds(reach.reached) - measured.holds
        cores, gpus = self._hours(measured.cost.times(factor))
        return Estimate(
            core_hours=cores,
            gpu_hours=gpus,
            wall_hours=max(cores / self.probe.num_cores, gpus / max(1, self.probe.num_gpus)),
            source_bytes=self._source_bytes(reach, self.parts if is_catalog else []),
            memory_bytes=measured.cost.peak_bytes + max(0, held) * self.probe.vector_bytes,
            store_bytes=measured.num_bytes * (factor if is_catalog else reach.reached / max(1, measured.pairs)),
        )

    def _hours(self, cost: Cost) -> tuple[float, float]:
        # what holds a GPU pays for that alone; what waits holds a core, but where there are more places than cores
        waiting = 0.0 if self.probe.shares_cores else cost.waiting_seconds
        on_cpu = max(0.0, cost.core_seconds + waiting - cost.gpu_seconds)
        return on_cpu / HOUR, cost.gpu_seconds / HOUR

    def _source_bytes(self, reach: Reach, all_parts: list[Part]) -> float:
        if all_parts:
            return num_bytes(all_parts)
        reads = reach.stage.artifact.kind == "embedding" and "image" in reach.stage.artifact.made_from["towers"]
        return reach.reached * self.probe.image_bytes if reads else 0.0

    def _training(self, trained: Trained, samples: int) -> Estimate:
        per_worker = trained.samples_per_second / trained.num_workers
        wall = samples / (per_worker * self.probe.num_workers) / HOUR
        on_gpus = trained.gpu_bytes > 0
        return Estimate(
            core_hours=0.0 if on_gpus else wall * self.probe.num_cores,
            gpu_hours=wall * self.probe.num_workers if on_gpus else 0.0,
            wall_hours=wall,
            source_bytes=samples * self.probe.image_bytes,
            memory_bytes=trained.peak_bytes,
            store_bytes=trained.num_bytes,
        )
