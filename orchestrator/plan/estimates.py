"""Estimate the costs of a run from the measurements of its probe.

The cost of each stage is scaled from the probe's pairs to the pairs that reach the stage in the run."""

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
from orchestrator.plan.measurements import ForwardPass, MeasuredPhase, MeasuredStage, Measurements
from orchestrator.plan.rows import Reach
from orchestrator.training.checkpoint_names import steps_saved

HOUR = 3600
# stages with one result per part of the pool, so the finished parts say how much is left; others work by groups of
# parts or by buckets
BY_PART = (
    *(Role.CATALOG, Role.POOL, Role.CAPTIONED, Role.KEEP),
    *(Role.EMBED, Role.SCORE, Role.ASSIGN_CLUSTERS),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated cost of a stage: core, GPU and wall-clock hours; bytes read from the source, of memory in the largest
    process, and left in the store. `bound` is the reason why the stage cannot use the whole cluster, if any."""

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
        """Return the cost at the configured prices."""
        return self.core_hours * (prices.core_hour_price or 0) + self.gpu_hours * (prices.gpu_hour_price or 0)


class Estimates:
    """Estimates for the remaining stages, `by_stage`: by name, None for a stage that was not measured."""

    def __init__(
        self,
        measured: Measurements,
        num_parts: int,
        found: Sequence[Reach],
        catalog: Artifact,
        *,
        batch_size: int,
        window: int,
    ):
        self.measured, self.num_parts, self.catalog = measured, num_parts, catalog
        self.batch_size, self.window, self.num_pairs = batch_size, window, found[0].left
        self.num_models = sum(one.stage.trains for one in found)
        # if two stages have the same artifact, the second one reuses it
        first = {one.stage.artifact.uri: one for one in reversed(found)}
        left = [one for one in found if first[one.stage.artifact.uri] is one and not one.stage.artifact.is_complete()]
        self.by_stage = {one.stage.name: self._estimate(one) for one in left}

    def of_samples(self, phase: str, samples: int, *, share: float = 1.0) -> Estimate:
        """Estimate training on `samples` samples at the pace of `phase`, on a `share` of the pool's pairs."""
        cluster, trained = self.measured, self.measured.phases[phase]
        on_gpus = trained.gpu_bytes > 0
        pace, bound = trained.samples_per_second * cluster.num_workers / trained.num_workers, ""
        if on_gpus and pace > self.decoded_per_second(trained):
            pace, bound = self.decoded_per_second(trained), "decoding"
        wall = samples / pace / HOUR
        cores = min(cluster.num_cores, cluster.num_workers * cluster.node_cores)
        return Estimate(
            core_hours=0.0 if on_gpus else wall * cores,
            gpu_hours=wall * cluster.num_workers if on_gpus else 0.0,
            wall_hours=wall,
            source_bytes=samples * self._sample_bytes(share),
            memory_bytes=trained.peak_bytes,
            store_bytes=trained.num_bytes,
            bound=bound,
        )

    def decoded_per_second(self, trained: MeasuredPhase) -> float:
        """Return the images per second that the run's cores decode beside its training workers."""
        return self.measured.decoding_cores / trained.decode_seconds if trained.decode_seconds else math.inf

    def _estimate(self, reach: Reach) -> Estimate | None:
        stage = reach.stage
        if stage.name in self.measured.phases:
            samples = max(0, (reach.samples or 0) - steps_saved(stage.artifact) * self.batch_size)
            return self.of_samples(stage.name, samples, share=min(1.0, max(1, reach.left) / max(1, self.num_pairs)))
        if stage.role == Role.EVALUATE:
            return self._evaluation(self.measured.forward) if self.measured.forward else None
        measured = self.measured.stages.get(stage.name)
        if measured is None or not measured.work or not measured.stores:
            return None
        return self._stage(reach, measured)

    def _evaluation(self, forward: ForwardPass) -> Estimate:
        """Estimate the evaluation of all phases' models, one set after the other.

        Images are spread over one actor per GPU, or go to a single actor on CPUs. For a classification set every actor
        embeds all prompts."""
        cluster, num_models = self.measured, self.num_models
        wall = computed = decoded = 0.0
        for one in cluster.sets:
            actors = max(1, min(cluster.num_gpus, one.num_shards))
            images = num_models * one.images * forward.image_seconds
            texts = num_models * one.texts * forward.text_seconds
            decoding = one.images * forward.decode_seconds
            shared = images if one.shares_texts else images + texts
            alone = texts if one.shares_texts else 0.0
            took = alone + max(shared / actors, decoding / cluster.num_cores)
            wall, decoded = wall + took, decoded + decoding
            computed += took * actors
        on_gpus = cluster.num_gpus > 0
        return Estimate(
            core_hours=(decoded + (0.0 if on_gpus else computed)) / HOUR,
            gpu_hours=computed / HOUR if on_gpus else 0.0,
            wall_hours=wall / HOUR,
            source_bytes=float(sum(one.num_bytes for one in cluster.sets)),
            memory_bytes=forward.peak_bytes,
            bound="" if on_gpus or cluster.num_cores == 1 else "1 actor",
        )

    def _stage(self, reach: Reach, measured: MeasuredStage) -> Estimate:
        stage, pairs = reach.stage, reach.reached
        is_catalog = stage.artifact == self.catalog
        work, stores = (1.0, 1.0) if is_catalog else (stage.scaling.work(pairs), stage.scaling.stores(pairs))
        by_part = stage.role in BY_PART
        left = 1 - min(1.0, num_done(stage.artifact) / self.num_parts) if by_part else 1.0
        held = max(0, stage.scaling.holds(pairs) - measured.holds)
        share = left * work / measured.work
        return replace(
            self._hours(measured.cost.times(share), stage, pairs, measured.serial_seconds * share / HOUR),
            source_bytes=self._source_bytes(reach, left, is_catalog),
            memory_bytes=measured.cost.peak_bytes + held * self.measured.vector_bytes,
            store_bytes=measured.num_bytes * stores / measured.stores,
        )

    def _hours(self, cost: Cost, stage: Stage, pairs: int, serial_hours: float) -> Estimate:
        """Spread the cost over the cluster, limited by the stage's number of tasks."""
        cluster = self.measured
        one_task = stage.scaling.one_task
        tasks = stage.scaling.num_tasks(Size(pairs=pairs, pool=self.num_pairs, parts=self.num_parts))
        cores, gpus = (cluster.node_cores, 1) if one_task else (cluster.num_cores, cluster.num_gpus)
        bound = "1 task" if one_task and cores < cluster.num_cores else ""
        if not one_task:
            bound = f"{tasks:,} task{'s' if tasks > 1 else ''}" if tasks < (gpus if cost.gpu_seconds else cores) else ""
            cores, gpus = min(cores, tasks), min(gpus, tasks)
        gpus = max(1, gpus)
        # a waiting task holds its core, unless there are more logical CPUs than cores; GPU seconds are not core seconds
        waiting = 0.0 if cluster.shares_cores else cost.waiting_seconds
        on_cpus = max(0.0, cost.core_seconds + waiting - cost.gpu_seconds) / HOUR
        wall = max(on_cpus / cores, cost.gpu_seconds / HOUR / gpus)
        if serial_hours > wall:
            wall, bound = serial_hours, "1 writer"
        # the stage holds its GPUs for its whole duration, also while they wait for decoding
        held = wall * gpus if cost.gpu_seconds else 0.0
        return Estimate(core_hours=on_cpus, gpu_hours=held, wall_hours=wall, bound=bound)

    def _sample_bytes(self, share: float) -> float:
        """Return the bytes to read per training sample, including pairs that are read but not used.

        A Parquet row group is read whole, once for each shuffle window that contains kept pairs of it."""
        rows = self.measured.rows_per_read
        windows = 1 - (1 - share) ** rows + max(0.0, share * rows - 1) / self.window
        return self.measured.image_bytes * windows / share

    def _source_bytes(self, reach: Reach, left: float, is_catalog: bool) -> float:
        if is_catalog:
            return left * self.measured.pool_bytes
        artifact = reach.stage.artifact
        reads = reach.stage.role == Role.EMBED and "image" in artifact.made_from["towers"]
        return left * reach.reached * self.measured.image_bytes if reads else 0.0
