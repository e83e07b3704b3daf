"""A precomputed embedding as stages: join the rows of its files with the pool, then fetch the vectors of every part.

Where the files were made from the shards of the pool, the rows of a part lie in few files and near each other, so
neighbouring rows are fetched together. From an `.npy` file nothing else is read. From a row group of a Parquet file,
everything up to the last wanted row is read; so parts are fetched in runs of up to `RUN_BYTES` of vectors. If the files
follow the order of the pool, a row group is read once for each run that it spans, whatever the order within a run. If
they do not, every run reads nearly all files, for a large pool thousands of times: use `.npy` files then, or sort the
Parquet files like the pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import ClipRetrievalEmbedding, ColumnEmbedding, Config, PrecomputedConfig
from orchestrator.config.embedding import Tower
from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.join import Joined, Match, join_stages
from orchestrator.embedding.precomputed_files import PrecomputedVectors, open_precomputed
from orchestrator.embedding.vectors import BOTH_VERSION, clip_scores, embedding_totals, part_result, unit_rows
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import InRuns, PartResult, PartsJob
from orchestrator.engine.role import Role
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import UserError
from orchestrator.source.schema import Problems, has_image

logger = logging.getLogger(__name__)
VERSION = 1
RUN_BYTES = 2**29

Gathered = tuple[NDArray[np.floating], dict[str, NDArray[np.int64]]]
"""The vectors of a run of parts, [rows, dim] of unit norm, and the places in the run of those that are unusable, by
reason."""


def precomputed_stages(config: Config, name: str, catalog: Catalog) -> list[Stage]:
    """The join, and the vectors in the order of the pool: the artifact of the last stage is the embedding.

    Errors: `UserError`, one line, for files that do not fit together, here or when built; when built, for more pairs
    without a vector than `max_missing` allows."""
    settings = config.embedding[name]
    assert isinstance(settings, (ClipRetrievalEmbedding, ColumnEmbedding))
    vectors = open_precomputed(settings, name)
    first, *others = join_stages(config.store, catalog, vectors.external_list, label=name)
    joined = Joined(others[-1].artifact)
    artifact = Artifact.of(
        config.store,
        "embedding",
        version=VERSION if len(vectors.towers) == 1 else BOTH_VERSION,
        catalog=catalog.artifact,
        aligned=joined.artifact,
        settings=settings.model_dump(exclude={"uri"}),
        vectors=vectors.identity(),
        towers=list(vectors.towers),
    )
    fetch = Stage(
        name=f"embed, {name}",
        role=Role.EMBED,
        step=name,
        does=f"fetch the precomputed {' and '.join(vectors.towers)} vectors",
        artifact=artifact,
        build=BuildPrecomputed(artifact, name, settings, catalog, vectors, joined),
        flow=PairFlow(on_whole_pool=True),
    )
    return [replace(first, build=CheckedBuild(vectors, first.build)), *others, fetch]


@dataclass(frozen=True)
class CheckedBuild:
    """Builds the first stage of the join, after a check that the files fit together."""

    vectors: PrecomputedVectors
    build: Callable[[Display], object]

    def __call__(self, display: Display) -> object:
        """Reads the lengths of the vectors, which fails before the rows of the files are read."""
        self.vectors.dims()
        return self.build(display)


@dataclass(frozen=True)
class BuildPrecomputed:
    """Builds the embedding from the files and the join."""

    artifact: Artifact
    name: str
    settings: PrecomputedConfig
    catalog: Catalog
    vectors: PrecomputedVectors
    joined: Joined

    def __call__(self, display: Display) -> Artifact:
        """Checks the number of pairs without a vector, then fetches every part.

        Errors: `UserError` for more such pairs than `max_missing` allows."""
        _check_missing(self.settings, self.name, self.joined)
        dims = self.vectors.dims()
        work = InRuns(
            partial(FetchRun, self.catalog, self.vectors, self.joined, dims),
            partial(_share, self.vectors, sum(dims.values()) * _precision(dims)().itemsize),
        )
        title, totals = f"embed, {self.name}", partial(embedding_totals, dims=dims)
        PartsJob(self.artifact, part_rows(self.catalog), work, name=title, totals=totals).build(display)
        counts = (self.artifact.totals["rows"], self.artifact.totals["problems"])
        logger.info("embedding.%s: vectors of %d pairs fetched; missing or bad by reason: %s", self.name, *counts)
        return self.artifact


def _check_missing(settings: PrecomputedConfig, name: str, joined: Joined) -> None:
    totals = joined.totals
    usable, missing = totals["usable"], totals["usable_unmatched"]
    if missing > settings.max_missing * usable:
        raise UserError(
            f"embedding.{name}: matched by {settings.match_by}, {usable - missing:,} of {usable:,} pairs with an image "
            f"have a vector and {missing:,} have none; at most {settings.max_missing:.1%} allowed (only in the pool: "
            f"{', '.join(totals['pool_examples']) or f'pairs without {settings.match_by}'}; only in the files: "
            f"{', '.join(totals['list_examples']) or 'none'}); check embedding.{name}.match_by and match_column, or "
            f"raise embedding.{name}.max_missing"
        )


def _share(vectors: PrecomputedVectors, row_bytes: int, part: PartRows) -> float:
    # the fraction of a run that a part fills. Where large runs save nothing, each part is a run: small runs keep more
    # of the cluster busy
    return part.num_rows * row_bytes / RUN_BYTES if vectors.in_groups else 1.0


def _precision(dims: Mapping[Tower, int]) -> type[np.floating]:
    # in memory; files have float16. With both towers, the cosines are those of the vectors before rounding
    return np.float32 if len(dims) == 2 else np.float16


@dataclass(frozen=True)
class FetchRun:
    """The work on a run of parts; `dims` are the lengths of the vectors of each tower."""

    catalog: Catalog
    vectors: PrecomputedVectors
    joined: Joined
    dims: Mapping[Tower, int]

    def __call__(self, run: Sequence[PartRows]) -> Iterator[PartResult]:
        """The result of each part, in order. The vectors of the whole run are in memory at once."""
        match = Match(*map(np.concatenate, zip(*(self.joined.part(part) for part in run), strict=True)))
        precision = _precision(self.dims)
        gathered = {tower: _gather(self.vectors, tower, dim, match, precision) for tower, dim in self.dims.items()}
        first = 0
        for part in run:
            rows = slice(first, first + part.num_rows)
            problems = self._problems(part, match, rows, gathered)
            wide = {tower: found[rows] for tower, (found, _) in gathered.items()}
            scores = clip_scores(wide["image"], wide["text"]) if len(wide) == 2 else None
            values = {tower: found.astype(np.float16, copy=False) for tower, found in wide.items()}
            yield part_result(values, scores=scores, problems=problems.counts, examples=problems.examples)
            first = rows.stop

    def _problems(self, part: PartRows, match: Match, rows: slice, gathered: Mapping[Tower, Gathered]) -> Problems:
        problems = Problems()
        names = self.catalog.table(part.index, ("key",))["key"]
        for row in np.flatnonzero(_has_image(self.catalog, part) & (match.file[rows] < 0)).tolist():
            problems.add("unmatched", f"{names[row]}: has no vector")
        for tower, (_, bad) in gathered.items():
            for kind, places in bad.items():
                for place in places[(places >= rows.start) & (places < rows.stop)].tolist():
                    name = names[place - rows.start]
                    problems.add(kind, f"{name}: its {tower} vector is {kind.replace('_', ' ')}")
        return problems


def _has_image(catalog: Catalog, part: PartRows) -> NDArray[np.bool_]:
    return has_image(catalog.table(part.index, ("status",))["status"]).to_numpy()


def _gather(
    vectors: PrecomputedVectors, tower: Tower, dim: int, match: Match, precision: type[np.floating]
) -> Gathered:
    out = np.zeros((len(match.file), dim), precision)
    bad: dict[str, list[int]] = {"not_finite": [], "zero": []}
    # file by file, and in each file in row order: the reader moves forward only
    order = np.lexsort((match.row, match.file))
    order = order[match.file[order] >= 0]
    for places in np.split(order, np.flatnonzero(np.diff(match.file[order])) + 1) if len(order) else []:
        file, start = int(match.file[places[0]]), 0
        for values in vectors.vectors(tower, dim, file, match.row[places]):
            these = places[start : start + len(values)]
            out[these] = unit = unit_rows(values)
            unusable = ~unit.any(axis=1)
            finite = np.isfinite(values[unusable].astype(np.float32)).all(axis=1)
            bad["not_finite"] += these[unusable][~finite].tolist()
            bad["zero"] += these[unusable][finite].tolist()
            start += len(values)
        assert start == len(places), f"{len(places) - start} rows lie beyond file {file}"
    return out, {kind: np.array(rows, np.int64) for kind, rows in bad.items()}
