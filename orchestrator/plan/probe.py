"""The probe: the run's own stages on a few parts of the pool, in a place of their own, each measured.

Two things are too slow for whole parts and are measured on fewer pairs: an encoder embeds some hundred, and what comes
after it gets drawn vectors; training takes a few steps, in batches of the size that each worker will have. What was
brought along (embeddings, keep lists) would be joined as a whole: that is not measured."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Protocol

import pyarrow.compute as pc
from rich.console import Console

from orchestrator import cluster, store
from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog, catalog_stage
from orchestrator.config import Config, Limits
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.embedding import embedding_stages
from orchestrator.embedding.brought_files import open_brought
from orchestrator.embedding.vectors import Embedding
from orchestrator.keeplist import KeepList
from orchestrator.metering import Cost, metering
from orchestrator.plan import smaller
from orchestrator.plan.rows import Reach, reaches
from orchestrator.plan.subset import Subset, draw_vectors, num_bytes, size_of
from orchestrator.progress import Display
from orchestrator.source import Source
from orchestrator.stage import Stage

WARM_UP_SHARE = 0.25
TOWERS: tuple[Tower, ...] = ("image", "text")
# float16 as stored and float32 as computed with
BYTES_PER_DIM = 6


class Planned(Protocol):
    """A run's stages in order, and the keep list that selection comes to."""

    @property
    def stages(self) -> list[Stage]: ...

    @property
    def kept(self) -> Artifact: ...


Make = Callable[[Config, Source], Planned]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A stage in the probe: its cost, for so much of `Stage.work` and so many pairs; the pairs whose vectors one of its
    processes held, and the bytes it left in the store."""

    cost: Cost
    work: float
    pairs: int
    holds: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A phase in the probe: the samples a second of so many workers at a batch for each, once warm; the resident memory
    and, on GPUs, the device's of a worker; the bytes of its model."""

    samples_per_second: float
    num_workers: int
    batch_size: int
    peak_bytes: int
    gpu_bytes: int
    num_bytes: int


@dataclass(kw_only=True)
class Probe:
    """What was measured, by stage; `vector_bytes` are those of a pair's longest vector as work on it holds it. The
    numbers of cores, GPUs and training workers are those of the run, once its cluster has grown; `shares_cores`: there
    are more logical CPUs than cores."""

    num_cores: int
    num_gpus: int
    shares_cores: bool
    num_workers: int = 0
    num_pairs: int = 0
    image_bytes: float = 0.0
    vector_bytes: int = 0
    stages: dict[str, Measured] = field(default_factory=dict)
    phases: dict[str, Trained] = field(default_factory=dict)
    seconds: float = 0.0


def probe(config: Config, source: Source, make: Make, display: Display) -> Probe:
    """Measures what is left of a run; `make` lists the stages of a config over a source.

    Errors: as the run's own."""
    started, training = time.monotonic(), config.training
    cluster.connect(config.cluster)
    cluster.check_shared({"store": config.store})
    num_cores = cluster.num_cores()
    found = Probe(num_cores=num_cores, num_gpus=cluster.num_gpus(), shares_cores=cluster.num_cpus() > num_cores)
    if source.has_images:
        found.num_workers = cluster.num_train_workers(training.num_workers, lanes=training.lanes)
    cluster.connect(smaller.cluster_of(config))
    place = store.join(config.store, f"probe-{uuid.uuid4().hex[:8]}")
    try:
        with display.stage("probe", unit="stages") as progress:
            there = {
                stage.name: stage.artifact for stage in make(config, source).stages if stage.artifact.is_complete()
            }
            subset = Subset.spread(source, config.plan.probe_parts)
            running = _Running(smaller.base(config, place), subset, make, there, found)
            for done, name in enumerate(running.steps(), 1):
                progress.update(done, note=name)
    finally:
        store.remove(place)
    found.seconds = time.monotonic() - started
    return found


class _Running:
    def __init__(self, config: Config, source: Subset, make: Make, there: Mapping[str, Artifact], found: Probe):
        """`there`: the artifacts that the run would find, by stage."""
        self.config, self.source, self.make, self.there, self.found = config, source, make, there, found
        self.display = Display(Console(file=StringIO()))
        self.costs: dict[str, Cost] = {}

    def steps(self) -> Iterator[str]:
        """Measures stage by stage; gives the name of each that is done."""
        parts = self.source.parts()
        read = catalog_stage(self.config.store, self.source, Limits(max_broken_shards=1, max_broken_pairs=1))
        self._build(read)
        yield read.name
        catalog = Catalog(read.artifact)
        self.found.num_pairs = sum(catalog.rows_per_part)
        self.found.image_bytes = _image_bytes(catalog, num_bytes(parts))
        pool_share = size_of(parts) / size_of(self.source.whole.parts())
        self.config = smaller.selection_of(self.config, self.found.num_pairs, pool_share)
        planned = self.make(self.config, self.source)
        yield from self._selection(planned, catalog)
        self.found.stages[read.name] = replace(self.found.stages[read.name], work=size_of(parts))
        if any(stage.epochs and stage.name not in self.there for stage in planned.stages):
            self.config = smaller.training_of(self.config, KeepList(planned.kept).num_pairs, self.found.num_workers)
            yield from self._training(self.make(self.config, self.source))

    def _build(self, stage: Stage) -> None:
        with metering() as cost:
            stage.build(self.display)
            self.costs[stage.name] = cost()

    def _selection(self, planned: Planned, catalog: Catalog) -> Iterator[str]:
        built_already = set(self.costs)
        for name, stages in self._embeddings(catalog).items():
            built_already |= {stage.name for stage in stages}
            yield from self._embedding(name, stages[-1], catalog)
        for stage in planned.stages:
            if not stage.epochs and stage.name not in built_already:
                self._build(stage)
                yield stage.name
        for reach in reaches(planned.stages, self.source, catalog):
            if reach.stage.name in self.costs:
                self.found.stages[reach.stage.name] = self._measured(reach)

    def _measured(self, reach: Reach) -> Measured:
        stage = reach.stage
        return Measured(
            cost=self.costs[stage.name],
            work=stage.work(reach.reached),
            pairs=reach.reached,
            holds=stage.holds(reach.reached),
            num_bytes=store.num_bytes(stage.artifact.uri),
        )

    def _embeddings(self, catalog: Catalog) -> dict[str, list[Stage]]:
        names = {self.config.selection.embedding_of(step) for step in self.config.selection.steps} - {None}
        return {
            str(name): embedding_stages(self.config, str(name), self.source, catalog) for name in sorted(names, key=str)
        }

    def _embedding(self, name: str, stage: Stage, catalog: Catalog) -> Iterator[str]:
        settings = self.config.embedding[name]
        if stage.name in self.there:
            dims = _dims(self.there[stage.name])
        elif isinstance(settings, EncoderConfig):
            dims, cost = self._encode(name, settings)
            self.costs[stage.name] = cost
        else:
            dims = open_brought(settings, name).dims()
        draw_vectors(stage.artifact, catalog, dims, self.display)
        self.found.vector_bytes = max(self.found.vector_bytes, BYTES_PER_DIM * max(dims.values()))
        yield stage.name

    def _encode(self, name: str, settings: EncoderConfig) -> tuple[dict[Tower, int], Cost]:
        """The lengths of an encoder's vectors, and its cost for as many pairs as the whole probe has."""
        # torch, which captions alone do without
        from orchestrator.embedding.execution import num_actors

        settings = smaller.encoder_of(settings)
        config = self.config.model_copy(update={"embedding": {**self.config.embedding, name: settings}})
        num_rows = smaller.rows_to_encode(settings, num_actors(), len(self.source.places))
        few = replace(self.source, max_rows=num_rows)
        read = catalog_stage(config.store, few, Limits(max_broken_shards=1, max_broken_pairs=1))
        read.build(self.display)
        (stage,) = embedding_stages(config, name, few, Catalog(read.artifact))
        with metering() as cost:
            stage.build(self.display)
            spent = cost()
        return _dims(stage.artifact), spent.times(self.found.num_pairs / sum(Catalog(read.artifact).rows_per_part))

    def _training(self, planned: Planned) -> Iterator[str]:
        alike: dict[float, Trained] = {}
        for stage, phase in zip(
            [stage for stage in planned.stages if stage.epochs],
            (self.config.training, self.config.finetune),
            strict=False,
        ):
            # but for the patches that are left out, the steps of both phases are the same
            if phase.patch_dropout not in alike:
                stage.build(self.display)
                alike[phase.patch_dropout] = _trained(stage.artifact, self.config)
            self.found.phases[stage.name] = alike[phase.patch_dropout]
            yield stage.name


def _dims(embedding: Artifact) -> dict[Tower, int]:
    embedded = Embedding(embedding)
    return {tower: embedded.dim(tower) for tower in TOWERS if embedded.has(tower)}


def _trained(artifact: Artifact, config: Config) -> Trained:
    lines = [json.loads(line) for line in store.read(artifact.path("metrics.jsonl")).splitlines()]
    warm = lines[int(len(lines) * WARM_UP_SHARE) :]
    num_workers = artifact.totals["num_workers"]
    return Trained(
        samples_per_second=len(warm) / sum(1 / line["samples_per_second"] for line in warm),
        num_workers=num_workers,
        batch_size=config.training.global_batch_size // num_workers,
        peak_bytes=max(line["memory_bytes"] for line in lines),
        gpu_bytes=max(line.get("gpu_memory_bytes", 0) for line in lines),
        num_bytes=store.num_bytes(artifact.path("model")),
    )


def _image_bytes(catalog: Catalog, pool_bytes: int) -> float:
    """Of an encoded image, on average; where the catalog does not know, what a pair takes of its shard."""
    sizes = [
        pc.mean(catalog.table(index, ("image_size",))["image_size"]).as_py()
        for index in range(len(catalog.rows_per_part))
    ]
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) if known else pool_bytes / max(1, sum(catalog.rows_per_part))
