"""Build and measure the stages of a probe, one after the other.

Every selection step is measured on all pairs of the probe, regardless of the steps before it. Two stages are too slow
for whole parts: an encoder embeds a few hundred pairs, and later stages get random vectors; training runs a few steps.
Of external embeddings and keep lists, some rows are joined; reading external vectors is not measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Protocol

import pyarrow.compute as pc
from rich.console import Console

from orchestrator.config import Clustering, Config
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.data.catalog import Catalog, catalog_stage
from orchestrator.data.join import join_stages
from orchestrator.data.keep_list import KeepList
from orchestrator.embedding import embedding_stages
from orchestrator.embedding.precomputed_files import open_precomputed
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Cost, metering
from orchestrator.engine.stage import Stage
from orchestrator.plan import probe_config
from orchestrator.plan.measurements import MeasuredStage, Measurements
from orchestrator.plan.pace import PACE_SECONDS, encoder_pace, training_pace
from orchestrator.plan.probe_pool import PoolSample, draw_vectors, first_rows, lists_of
from orchestrator.plan.rates import ProbeRun, WriterLoad, extrapolated, measure_phases, writer_seconds
from orchestrator.plan.rows import Reach, reaches
from orchestrator.selection import caption_reader
from orchestrator.source import Source
from orchestrator.storage import files

logger = logging.getLogger(__name__)

TOWERS: tuple[Tower, ...] = ("image", "text")
# two float32 values: k-means holds the vectors and a copy that they are gathered from
BYTES_PER_DIM = 8
# the length of random vectors in place of those of an encoder that does not start in time
USUAL_DIM = 512


class Planned(Protocol):
    """The stages of a run in order, and its final keep list."""

    @property
    def stages(self) -> list[Stage]: ...

    @property
    def kept(self) -> Artifact: ...


ListStages = Callable[[Config, Source], Planned]


class ProbeRunner:
    """Builds the stages of a probe into its own store and adds their costs to `measured`."""

    def __init__(
        self,
        config: Config,
        sample: PoolSample,
        list_stages: ListStages,
        found: Sequence[Reach],
        measured: Measurements,
    ):
        self.config, self.sample, self.list_stages, self.measured = config, sample, list_stages, measured
        self.source = sample.subset
        self.real = {one.stage.name: one for one in found}
        self.display = Display(Console(file=StringIO()))
        self.by_name: dict[str, Cost] = {}
        # by artifact URI, because steps with equal settings share an artifact: both see all pairs of the probe
        self.by_artifact: dict[str, Cost] = {}
        # seconds of the embedding writers, by stage name
        self.serial: dict[str, float] = {}
        # names of the stages that join external lists; they are measured on the first rows only
        self.joined: set[str] = set()

    def steps(self) -> Iterator[str]:
        """Measure all stages; yield the name of each one before it is measured."""
        reader = caption_reader(self.config, trains=self.source.has_images)
        read = catalog_stage(self.config.store, self.source, self.config.source.limits, caption_reader=reader)
        yield read.name
        self._build(read)
        self.by_name[read.name] = self.by_artifact[read.artifact.uri]
        self.catalog = Catalog(read.artifact)
        self.measured.num_pairs = sum(self.catalog.rows_per_part)
        (reach,) = reaches([read], self.source, self.catalog)
        self.measured.stages[read.name] = replace(
            self._measure(reach), work=self.sample.share, stores=self.sample.share * self._share_of_rows()
        )
        self.measured.pool_bytes = self.sample.pool_bytes
        self.measured.image_bytes = _image_bytes(self.catalog) or self.sample.image_bytes
        self.measured.rows_per_read = self.sample.rows_per_read
        yield from self._joins()
        yield from self._embeddings()
        for name in self.config.selection.steps:
            yield from self._step(name)
        without_steps = probe_config.with_steps(self.config, {})
        planned = self.list_stages(without_steps, self.source)
        yield from self._stages(planned, [stage for stage in planned.stages if not stage.trains])
        lists = [stage.artifact for stage in planned.stages if stage.artifact.kind == "keep"]
        num_pairs = min(KeepList(artifact).num_pairs for artifact in lists)
        if self.measured.num_workers and num_pairs:
            yield from self._phases(without_steps, num_pairs)

    def _phases(self, config: Config, num_pairs: int) -> Iterator[str]:
        """Measure training on as many pairs as the model's pace allows."""
        yield "a training step"
        workers, has_gpus = self.measured.num_workers, self.measured.num_gpus > 0
        pace = training_pace(config, workers)
        if pace is None and not has_gpus:
            self.measured.remarks.append(f"training is not measured: {_too_slow(None)}")
            return
        of_pair, chunks = (pace.seconds(1), pace.accumulation) if pace else (0.0, None)
        config = probe_config.training_of(config, num_pairs, workers, of_pair, chunks)
        phases = [stage for stage in self.list_stages(config, self.source).stages if stage.trains]
        run = ProbeRun(config, self.source, self.catalog)
        if pace is not None:
            extrapolated(run, phases, self.config, self.measured, pace)
            self.measured.remarks += [f"training: {pace.memory}"] if pace.memory else []
            if not has_gpus and not probe_config.training_fits(of_pair, pace.start_seconds):
                return
        yield from measure_phases(run, phases, self.config, self.measured, self.display)

    def _share_of_rows(self) -> float:
        """Return the share of the sampled parts' rows that the probe uses."""
        rows = [part.num_rows for part in self.source.chosen]
        return 1.0 if None in rows else self.measured.num_pairs / max(1, sum(filter(None, rows)))

    def _is_left(self, name: str) -> bool:
        return name in self.real and not self.real[name].stage.artifact.is_complete()

    def _step(self, name: str) -> Iterator[str]:
        """Measure a selection step. Stages that depend on cluster sizes run on clusters as large as the run's."""
        step = self.config.selection.settings[name]
        clustering: Clustering | None = getattr(step, "clustering", None)
        many = self._planned_step(name, math.inf)
        stages = [stage for stage in many.stages if not stage.trains]
        if not any(self._is_left(stage.name) for stage in stages):
            return
        by_size = next((place for place, stage in enumerate(stages) if stage.scaling.by_cluster_size), None)
        yield from self._stages(many, stages[:by_size])
        if by_size is not None and clustering is not None:
            pairs_per_cluster = self.real[stages[by_size].name].reached / clustering.k
            few = self._planned_step(name, self.measured.num_pairs / max(1, pairs_per_cluster))
            yield from self._stages(few, [stage for stage in few.stages if not stage.trains])

    def _planned_step(self, name: str, num_clusters: float) -> Planned:
        step = probe_config.step_of(self.config.selection.settings[name], self.measured.num_pairs, num_clusters)
        return self.list_stages(probe_config.with_steps(self.config, {name: step}), self.source)

    def _stages(self, planned: Planned, stages: Sequence[Stage]) -> Iterator[str]:
        """Build the stages that the run has too, and measure each name once."""
        for stage in stages:
            if stage.name not in self.real or stage.name in self.joined:
                continue
            if not stage.artifact.is_complete():
                yield stage.name
                self._build(stage)
            if stage.artifact.uri in self.by_artifact:
                self.by_name.setdefault(stage.name, self.by_artifact[stage.artifact.uri])
        names = {stage.name for stage in stages}
        for reach in reaches(planned.stages, self.source, self.catalog):
            name = reach.stage.name
            if name in names and name in self.by_name and name not in self.measured.stages:
                self.measured.stages[name] = self._measure(reach)

    def _build(self, stage: Stage) -> None:
        with metering() as cost:
            stage.build(self.display)
            self.by_artifact[stage.artifact.uri] = cost()

    def _measure(self, reach: Reach) -> MeasuredStage:
        stage = reach.stage
        logger.info("measured %s: %s", stage.name, self.by_name[stage.name])
        return MeasuredStage(
            cost=self.by_name[stage.name],
            work=stage.scaling.work(reach.reached),
            num_bytes=files.num_bytes(stage.artifact.uri),
            stores=stage.scaling.stores(reach.reached),
            holds=stage.scaling.holds(reach.reached),
            serial_seconds=self.serial.get(stage.name, 0.0),
        )

    def _joins(self) -> Iterator[str]:
        """Measure the joins of external lists with the pairs of the probe."""
        for label, foreign in lists_of(self.config).items():
            stages = join_stages(self.config.store, self.catalog, first_rows(foreign), label=label)
            self.joined |= {stage.name for stage in stages}
            if not any(self._is_left(stage.name) for stage in stages):
                continue
            for stage in stages:
                yield stage.name
                self._build(stage)
                self.by_name[stage.name] = self.by_artifact[stage.artifact.uri]
            for reach in reaches(stages, self.source, self.catalog):
                self.measured.stages[reach.stage.name] = self._measure(reach)

    def _embeddings(self) -> Iterator[str]:
        """Build vectors for all steps that use an embedding, and measure the encoders that the run still has to run."""
        steps = self.config.selection.steps
        for name in dict.fromkeys(filter(None, map(self.config.selection.embedding_of, steps))):
            *_, stage = embedding_stages(self.config, name, self.source, self.catalog)
            settings = self.config.embedding[name]
            dims: Mapping[Tower, int]
            yield stage.name
            if not self._is_left(stage.name):
                dims = _dims(self.real[stage.name].stage.artifact)
            elif isinstance(settings, EncoderConfig):
                dims = self._encoded(name, stage.name, settings)
            else:
                dims = open_precomputed(settings, name).dims()
            draw_vectors(stage.artifact, self.catalog, dims, self.display)
            self.measured.vector_bytes = max(self.measured.vector_bytes, BYTES_PER_DIM * max(dims.values()))

    def _encoded(self, name: str, stage: str, settings: EncoderConfig) -> Mapping[Tower, int]:
        """Measure an encoder on as many pairs as its pace allows; return the lengths of its vectors."""
        dims: Mapping[Tower, int]
        if self.measured.num_gpus:
            dims, self.by_name[stage] = self._encode(name, settings, 0.0)
            return dims
        # imports torch, which a selection by captions does not need
        from orchestrator.embedding.execution import threads_per_actor

        pace = encoder_pace(settings, threads_per_actor())
        if pace is not None and probe_config.encoder_fits(pace.pair_seconds):
            dims, self.by_name[stage] = self._encode(name, settings, pace.pair_seconds)
            return dims
        self.measured.remarks.append(f"{stage} is not measured: {_too_slow(pace.pair_seconds if pace else None)}")
        return dict.fromkeys(getattr(settings, "towers", TOWERS[:1]), USUAL_DIM) if pace is None else pace.dims

    def _encode(self, name: str, settings: EncoderConfig, pair_seconds: float) -> tuple[dict[Tower, int], Cost]:
        """Return the lengths of an encoder's vectors, and its cost scaled to all pairs of the probe."""
        from orchestrator.embedding.execution import num_actors

        settings = probe_config.encoder_of(settings, pair_seconds)
        config = self.config.model_copy(update={"embedding": {**self.config.embedding, name: settings}})
        num_rows = probe_config.rows_to_encode(settings, num_actors(), len(self.source.chosen))
        few = replace(self.source, max_rows=num_rows)
        read = catalog_stage(config.store, few, config.source.limits)
        read.build(self.display)
        (stage,) = embedding_stages(config, name, few, Catalog(read.artifact))
        with metering() as cost:
            stage.build(self.display)
            spent = cost()
        dims, rows = _dims(stage.artifact), self.measured.num_pairs // len(self.source.chosen)
        load = WriterLoad(dims=dims, batch_size=settings.batch_size, rows_per_part=rows)
        scratch = Artifact.of(config.store, "writing", version=1, of=stage.artifact)
        self.serial[stage.name] = writer_seconds(scratch, load) * self.measured.num_pairs
        return dims, spent.times(self.measured.num_pairs / sum(Catalog(read.artifact).rows_per_part))


def _too_slow(pair_seconds: float | None) -> str:
    if pair_seconds is None:
        return f"no GPU here, and the model does not fit into memory or takes more than {PACE_SECONDS:.0f} s to start"
    return f"no GPU here, and a pair takes {pair_seconds:,.1f} s"


def _dims(embedding: Artifact) -> dict[Tower, int]:
    embedded = Embedding(embedding)
    return {tower: embedded.dim(tower) for tower in TOWERS if embedded.has(tower)}


def _image_bytes(catalog: Catalog) -> float | None:
    """Return the mean bytes of an encoded image; None if the catalog has no sizes."""
    parts = range(len(catalog.rows_per_part))
    sizes = [pc.mean(catalog.table(index, ("image_size",))["image_size"]).as_py() for index in parts]
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) if known else None
