"""From what a probe measured to what a run would take: every stage's share, scaled to the pairs that reach it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.config import PlanConfig
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.metering import Cost
from orchestrator.engine.parts import num_done
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Size, Stage
from orchestrator.plan.decode_rates import Forward
from orchestrator.plan.measurements import Measured, Probe, Trained
from orchestrator.plan.rows import Reach
from orchestrator.training.checkpoint_names import steps_saved

HOUR = 3600
# what is computed part by part; others go by groups of parts, or by buckets
BY_PART = ("catalog", "embedding", "scores", "clusters", "keep")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a stage: hours of cores and GPUs, and by the clock; bytes that it reads of the source, that its largest
    process takes, and that it leaves in the store. `bound`: what keeps it from using the whole cluster, if anything."""

    core_hours: float = 0.0
    gpu_hours: float = 0.0
    wall_hours: float = 0.0
    source_bytes: float = 0.0
    memory_bytes: float = 0.0
    store_bytes: float = 0.0
    bound: str = ""

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
    """Of the stages that are still to be computed, by name; None for one that was not measured."""

    def __init__(
        self,
        probe: Probe,
        num_parts: int,
        found: Sequence[Reach],
        catalog: Artifact,
        *,
        batch_size: int,
        window: int,
    ):
        self.probe, self.num_parts, self.catalog = probe, num_parts, catalog
        self.batch_size, self.window, self.num_pairs = batch_size, window, found[0].left
        self.num_models = sum(one.stage.trains for one in found)
        # of two stages with one artifact the second finds it there
        first = {one.stage.artifact.uri: one for one in reversed(found)}
        left = [one for one in found if first[one.stage.artifact.uri] is one and not one.stage.artifact.is_complete()]
        self.by_stage = {one.stage.name: self._of(one) for one in left}

    def of_samples(self, phase: str, samples: int, *, share: float = 1.0) -> Estimate:
        """Of so many samples, trained on as in the phase; of the pool it sees this share."""
        probe, trained = self.probe, self.probe.phases[phase]
        on_gpus = trained.gpu_bytes > 0
        pace, bound = trained.samples_per_second * probe.num_workers / trained.num_workers, ""
        if on_gpus and pace > self.decoded_per_second(trained):
            pace, bound = self.decoded_per_second(trained), "decoding"
        wall = samples / pace / HOUR
        cores = min(probe.num_cores, probe.num_workers * probe.node_cores)
        return Estimate(
            core_hours=0.0 if on_gpus else wall * cores,
            gpu_hours=wall * probe.num_workers if on_gpus else 0.0,
            wall_hours=wall,
            source_bytes=samples * self._sample_bytes(share),
            memory_bytes=trained.peak_bytes,
            store_bytes=trained.num_bytes,
            bound=bound,
        )

    def decoded_per_second(self, trained: Trained) -> float:
        """Pictures that the cores beside the run's training workers decode."""
        return self.probe.decoding_cores / trained.decode_seconds if trained.decode_seconds else math.inf

    def _of(self, reach: Reach) -> Estimate | None:
        stage = reach.stage
        if stage.name in self.probe.phases:
            samples = max(0, (reach.samples or 0) - steps_saved(stage.artifact) * self.batch_size)
            return self.of_samples(stage.name, samples, share=min(1.0, max(1, reach.left) / max(1, self.num_pairs)))
        if stage.role == Role.EVALUATE:
            return self._evaluation(self.probe.forward) if self.probe.forward else None
        measured = self.probe.stages.get(stage.name)
        if measured is None or not measured.work or not measured.stores:
            return None
        return self._stage(reach, measured)

    def _evaluation(self, forward: Forward) -> Estimate:
        """Of the models of all phases on all sets, one set after the other: its images by actors, on a GPU each, or by
        one on a core; of a classification set each of them embeds all prompts."""
        probe, num_models = self.probe, self.num_models
        wall = computed = decoded = 0.0
        for one in probe.sets:
            actors = max(1, min(probe.num_gpus, one.num_shards))
            images = num_models * one.images * forward.image_seconds
            texts = num_models * one.texts * forward.text_seconds
            decoding = one.images * forward.decode_seconds
            shared = images if one.shares_texts else images + texts
            alone = texts if one.shares_texts else 0.0
            took = alone + max(shared / actors, decoding / probe.num_cores)
            wall, decoded = wall + took, decoded + decoding
            computed += took * actors
        on_gpus = probe.num_gpus > 0
        return Estimate(
            core_hours=(decoded + (0.0 if on_gpus else computed)) / HOUR,
            gpu_hours=computed / HOUR if on_gpus else 0.0,
            wall_hours=wall / HOUR,
            source_bytes=float(sum(one.num_bytes for one in probe.sets)),
            memory_bytes=forward.peak_bytes,
            bound="" if on_gpus or probe.num_cores == 1 else "1 actor",
        )

    def _stage(self, reach: Reach, measured: Measured) -> Estimate:
        stage, pairs = reach.stage, reach.reached
        is_catalog = stage.artifact == self.catalog
        work, stores = (1.0, 1.0) if is_catalog else (stage.scaling.work(pairs), stage.scaling.stores(pairs))
        by_part = stage.artifact.kind in BY_PART
        left = 1 - min(1.0, num_done(stage.artifact) / self.num_parts) if by_part else 1.0
        held = max(0, stage.scaling.holds(pairs) - measured.holds)
        share = left * work / measured.work
        return replace(
            self._hours(measured.cost.times(share), stage, pairs, measured.serial_seconds * share / HOUR),
            source_bytes=self._source_bytes(reach, left, is_catalog),
            memory_bytes=measured.cost.peak_bytes + held * self.probe.vector_bytes,
            store_bytes=measured.num_bytes * stores / measured.stores,
        )

    def _hours(self, cost: Cost, stage: Stage, pairs: int, serial_hours: float) -> Estimate:
        """Spread over as much of the cluster as the stage has tasks for."""
        probe = self.probe
        one_task = stage.scaling.one_task
        tasks = stage.scaling.num_tasks(Size(pairs=pairs, pool=self.num_pairs, parts=self.num_parts))
        cores, gpus = (probe.node_cores, 1) if one_task else (probe.num_cores, probe.num_gpus)
        bound = "1 task" if one_task and cores < probe.num_cores else ""
        if not one_task:
            bound = f"{tasks:,} task{'s' if tasks > 1 else ''}" if tasks < (gpus if cost.gpu_seconds else cores) else ""
            cores, gpus = min(cores, tasks), min(gpus, tasks)
        gpus = max(1, gpus)
        # who waits holds a core, but where there are more places than cores; and waits for a GPU without one
        waiting = 0.0 if probe.shares_cores else cost.waiting_seconds
        on_cpus = max(0.0, cost.core_seconds + waiting - cost.gpu_seconds) / HOUR
        wall = max(on_cpus / cores, cost.gpu_seconds / HOUR / gpus)
        if serial_hours > wall:
            wall, bound = serial_hours, "1 writer"
        # a GPU is held for as long as the stage takes, also where decoding is what it waits for
        held = wall * gpus if cost.gpu_seconds else 0.0
        return Estimate(core_hours=on_cpus, gpu_hours=held, wall_hours=wall, bound=bound)

    def _sample_bytes(self, share: float) -> float:
        """Of an image that is trained on, with those that are read for it in vain: a row group of Parquet is read whole
        for each of the windows that its kept pairs lie in."""
        rows = self.probe.rows_per_read
        windows = 1 - (1 - share) ** rows + max(0.0, share * rows - 1) / self.window
        return self.probe.image_bytes * windows / share

    def _source_bytes(self, reach: Reach, left: float, is_catalog: bool) -> float:
        if is_catalog:
            return left * self.probe.pool_bytes
        artifact = reach.stage.artifact
        reads = artifact.kind == "embedding" and "image" in artifact.made_from["towers"]
        return left * reach.reached * self.probe.image_bytes if reads else 0.0
