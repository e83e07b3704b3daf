"""The stages of a probe, built one after the other and measured.

Every selection step is measured on all of the probe's pairs, whatever the steps before it would leave. Two things are
too slow for whole parts: an encoder embeds some hundred pairs, and what comes after it gets drawn vectors; training
takes a few steps. Of what was brought along (embeddings, keep lists) some rows are joined; fetching the vectors that
go with them is not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from orchestrator.embedding.precomputed_files import open_brought
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Cost, metering
from orchestrator.engine.stage import Stage
from orchestrator.plan import probe_config
from orchestrator.plan.measurements import Measured, Probe
from orchestrator.plan.probe_lists import first_rows, lists_of
from orchestrator.plan.rows import Reach, reaches
from orchestrator.plan.subset import Drawn, draw_vectors
from orchestrator.plan.training import Pictured, measure_phases
from orchestrator.plan.writing import Written, seconds_per_row
from orchestrator.source import Source
from orchestrator.storage import files

TOWERS: tuple[Tower, ...] = ("image", "text")
# float32 twice: k-means holds the vectors and what they were gathered from
BYTES_PER_DIM = 8


class Planned(Protocol):
    """A run's stages in order, and the keep list that selection comes to."""

    @property
    def stages(self) -> list[Stage]: ...

    @property
    def kept(self) -> Artifact: ...


Make = Callable[[Config, Source], Planned]


class Running:
    """The probe's stages, which it builds one after the other into its own store."""

    def __init__(self, config: Config, drawn: Drawn, make: Make, found: Sequence[Reach], probed: Probe):
        self.config, self.drawn, self.make, self.probed = config, drawn, make, probed
        self.source = drawn.subset
        self.real = {one.stage.name: one for one in found}
        self.display = Display(Console(file=StringIO()))
        self.costs: dict[str, Cost] = {}
        # by artifact: two steps that are alike share theirs here, as both see the whole probe
        self.spent: dict[str, Cost] = {}
        # by name: of the writers of embeddings
        self.serial: dict[str, float] = {}
        # of what was brought along, by name: with some rows of it, where the run's own stages take all
        self.joined: set[str] = set()

    def steps(self) -> Iterator[str]:
        """Measures stage by stage; gives the name of each that is done."""
        read = catalog_stage(self.config.store, self.source, self.config.source.limits)
        self._build(read)
        self.costs[read.name] = self.spent[read.artifact.uri]
        yield read.name
        self.catalog = Catalog(read.artifact)
        self.probed.num_pairs = sum(self.catalog.rows_per_part)
        self.probed.pool_bytes = self.drawn.pool_bytes
        self.probed.image_bytes = _image_bytes(self.catalog) or self.drawn.image_bytes
        self.probed.rows_per_read = self.drawn.rows_per_read
        yield from self._joins()
        yield from self._embeddings()
        for name in self.config.selection.steps:
            yield from self._step(name)
        without_steps = probe_config.with_steps(self.config, {})
        planned = self.make(without_steps, self.source)
        yield from self._stages(planned, [stage for stage in planned.stages if not stage.trains])
        self.probed.stages[read.name] = replace(
            self.probed.stages[read.name], work=self.drawn.share, stores=self.drawn.share * self._share_of_rows()
        )
        lists = [stage.artifact for stage in planned.stages if stage.artifact.kind == "keep"]
        num_pairs = min(KeepList(artifact).num_pairs for artifact in lists)
        if self.probed.num_workers and num_pairs:
            config = probe_config.training_of(without_steps, num_pairs, self.probed.num_workers)
            phases = [stage for stage in self.make(config, self.source).stages if stage.trains]
            drawn = Pictured(config, self.source, self.catalog)
            yield from measure_phases(drawn, phases, self.config, self.probed, self.display)

    def _share_of_rows(self) -> float:
        """Of the drawn parts' rows those that the probe sees."""
        rows = [part.num_rows for part in self.source.chosen]
        return 1.0 if None in rows else self.probed.num_pairs / max(1, sum(filter(None, rows)))

    def _is_left(self, name: str) -> bool:
        return name in self.real and not self.real[name].stage.artifact.is_complete()

    def _step(self, name: str) -> Iterator[str]:
        """Measures a selection step; what costs the more the larger a cluster, on clusters as large as the run's."""
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
            few = self._planned_step(name, self.probed.num_pairs / max(1, pairs_per_cluster))
            yield from self._stages(few, [stage for stage in few.stages if not stage.trains])

    def _planned_step(self, name: str, num_clusters: float) -> Planned:
        step = probe_config.step_of(self.config.selection.settings[name], self.probed.num_pairs, num_clusters)
        return self.make(probe_config.with_steps(self.config, {name: step}), self.source)

    def _stages(self, planned: Planned, stages: Sequence[Stage]) -> Iterator[str]:
        """Builds those that the run has too, and measures each name once."""
        for stage in stages:
            if stage.name not in self.real or stage.name in self.joined:
                continue
            if not stage.artifact.is_complete():
                self._build(stage)
                yield stage.name
            if stage.artifact.uri in self.spent:
                self.costs.setdefault(stage.name, self.spent[stage.artifact.uri])
        names = {stage.name for stage in stages}
        for reach in reaches(planned.stages, self.source, self.catalog):
            name = reach.stage.name
            if name in names and name in self.costs and name not in self.probed.stages:
                self.probed.stages[name] = self._measured(reach)

    def _build(self, stage: Stage) -> None:
        with metering() as cost:
            stage.build(self.display)
            self.spent[stage.artifact.uri] = cost()

    def _measured(self, reach: Reach) -> Measured:
        stage = reach.stage
        return Measured(
            cost=self.costs[stage.name],
            work=stage.scaling.work(reach.reached),
            num_bytes=files.num_bytes(stage.artifact.uri),
            stores=stage.scaling.stores(reach.reached),
            holds=stage.scaling.holds(reach.reached),
            serial_seconds=self.serial.get(stage.name, 0.0),
        )

    def _joins(self) -> Iterator[str]:
        """What was brought along, joined with the probe's pairs."""
        for label, foreign in lists_of(self.config).items():
            stages = join_stages(self.config.store, self.catalog, first_rows(foreign), label=label)
            self.joined |= {stage.name for stage in stages}
            if not any(self._is_left(stage.name) for stage in stages):
                continue
            for stage in stages:
                self._build(stage)
                self.costs[stage.name] = self.spent[stage.artifact.uri]
                yield stage.name
            for reach in reaches(stages, self.source, self.catalog):
                self.probed.stages[reach.stage.name] = self._measured(reach)

    def _embeddings(self) -> Iterator[str]:
        """Vectors for all steps that go by some; what computing them costs, where they are to be computed."""
        steps = self.config.selection.steps
        for name in dict.fromkeys(filter(None, map(self.config.selection.embedding_of, steps))):
            *_, stage = embedding_stages(self.config, name, self.source, self.catalog)
            settings = self.config.embedding[name]
            if not self._is_left(stage.name):
                dims = _dims(self.real[stage.name].stage.artifact)
            elif isinstance(settings, EncoderConfig):
                dims, self.costs[stage.name] = self._encode(name, settings)
            else:
                dims = open_brought(settings, name).dims()
            draw_vectors(stage.artifact, self.catalog, dims, self.display)
            self.probed.vector_bytes = max(self.probed.vector_bytes, BYTES_PER_DIM * max(dims.values()))
            yield stage.name

    def _encode(self, name: str, settings: EncoderConfig) -> tuple[dict[Tower, int], Cost]:
        """The lengths of an encoder's vectors, and its cost for as many pairs as the whole probe has."""
        # torch, which captions alone do without
        from orchestrator.embedding.execution import num_actors

        settings = probe_config.encoder_of(settings)
        config = self.config.model_copy(update={"embedding": {**self.config.embedding, name: settings}})
        num_rows = probe_config.rows_to_encode(settings, num_actors(), len(self.source.chosen))
        few = replace(self.source, max_rows=num_rows)
        read = catalog_stage(config.store, few, config.source.limits)
        read.build(self.display)
        (stage,) = embedding_stages(config, name, few, Catalog(read.artifact))
        with metering() as cost:
            stage.build(self.display)
            spent = cost()
        dims, rows = _dims(stage.artifact), self.probed.num_pairs // len(self.source.chosen)
        written = Written(dims=dims, batch_size=settings.batch_size, rows_per_part=rows)
        place = Artifact.of(config.store, "writing", version=1, of=stage.artifact)
        self.serial[stage.name] = seconds_per_row(place, written) * self.probed.num_pairs
        return dims, spent.times(self.probed.num_pairs / sum(Catalog(read.artifact).rows_per_part))


def _dims(embedding: Artifact) -> dict[Tower, int]:
    embedded = Embedding(embedding)
    return {tower: embedded.dim(tower) for tower in TOWERS if embedded.has(tower)}


def _image_bytes(catalog: Catalog) -> float | None:
    """Of an encoded image, on average, where the catalog knows."""
    parts = range(len(catalog.rows_per_part))
    sizes = [pc.mean(catalog.table(index, ("image_size",))["image_size"]).as_py() for index in parts]
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) if known else None
