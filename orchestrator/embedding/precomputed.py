"""An embedding brought along: the files' rows are aligned with the pool, then every part fetches its own vectors.

A part's rows lie in few of the files, near each other, wherever the files were made from the pool's shards: neighbours
are fetched together. Of an `.npy` file nothing else is read. Of a Parquet file's row group all is read up to the last
row that is wanted; so there parts are fetched in runs, of up to `RUN_BYTES` of vectors. In the pool's order a row group
is read once for each run that it spans, in whatever order within a run. In an order that has nothing to do with the
pool's every run reads nearly all files, for a large pool thousands of times in all: bring `.npy` files then, or Parquet
sorted as the pool is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import BroughtConfig, ClipRetrievalEmbedding, ColumnEmbedding, Config
from orchestrator.config.embedding import Tower
from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.join import Joined, Match, join_stages
from orchestrator.embedding.precomputed_files import Brought, open_brought
from orchestrator.embedding.vectors import Vectors, embedding_totals, part_result, unit_vectors
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import InRuns, PartResult, RunWork, build_parts
from orchestrator.engine.role import Role
from orchestrator.engine.stage import PairFlow, Stage
from orchestrator.errors import UserError
from orchestrator.source.schema import Problems, has_image

VERSION = 1
RUN_BYTES = 2**29


def brought_stages(config: Config, name: str, catalog: Catalog) -> list[Stage]:
    """The alignment, and the vectors in pool order: the last stage's artifact is the embedding.

    Errors: `UserError`, one line, for files that do not go together, here or when built; when built, for more pairs
    without a vector than `max_missing` allows."""
    settings = config.embedding[name]
    assert isinstance(settings, (ClipRetrievalEmbedding, ColumnEmbedding))
    brought = open_brought(settings, name)
    first, *others = join_stages(config.store, catalog, brought.foreign, label=name)
    aligned = Joined(others[-1].artifact)
    artifact = Artifact.of(
        config.store,
        "embedding",
        version=VERSION,
        catalog=catalog.artifact,
        aligned=aligned.artifact,
        settings=settings.model_dump(exclude={"uri"}),
        vectors=brought.identity(),
        towers=list(brought.towers),
    )

    def build_first(display: Display) -> object:
        # files that do not go together are told before anything is read
        brought.dims()
        return first.build(display)

    def build(display: Display) -> Artifact:
        _check_missing(settings, name, aligned)
        dims = brought.dims()
        work = InRuns(partial(_work, catalog, brought, aligned, dims), partial(_share, brought, sum(dims.values())))
        totals = partial(embedding_totals, dims=dims)
        return build_parts(artifact, part_rows(catalog), work, display=display, name=f"embed, {name}", totals=totals)

    does = f"fetch the {' and '.join(brought.towers)} vectors brought along"
    gather = Stage(
        name=f"embed, {name}",
        role=Role.EMBED,
        step=name,
        does=does,
        artifact=artifact,
        build=build,
        flow=PairFlow(on_whole_pool=True),
    )
    return [replace(first, build=build_first), *others, gather]


def _check_missing(settings: BroughtConfig, name: str, aligned: Joined) -> None:
    totals = aligned.totals
    usable, missing = totals["usable"], totals["usable_unmatched"]
    if missing > settings.max_missing * usable:
        raise UserError(
            f"embedding.{name}: {usable - missing:,} of {usable:,} pairs with an image were found by "
            f"{settings.match_by}, {missing:,} were not, at most {settings.max_missing:.1%} allowed (not found: "
            f"{', '.join(totals['pool_examples']) or 'pairs without one'}; not in the pool: "
            f"{', '.join(totals['list_examples']) or 'none'}); check embedding.{name}.match_by and match_column, or "
            f"raise embedding.{name}.max_missing"
        )


def _share(brought: Brought, num_dims: int, part: PartRows) -> float:
    # small runs keep more of a cluster busy where nothing is saved by large ones
    return part.num_rows * num_dims * np.dtype(np.float16).itemsize / RUN_BYTES if brought.in_groups else 1.0


def _work(catalog: Catalog, brought: Brought, aligned: Joined, dims: Mapping[Tower, int]) -> RunWork:
    def work(run: Sequence[PartRows]) -> Iterator[PartResult]:
        match = Match(*map(np.concatenate, zip(*(aligned.part(part) for part in run), strict=True)))
        gathered = {tower: _gather(brought, tower, dim, match) for tower, dim in dims.items()}
        first = 0
        for part in run:
            stop = first + part.num_rows
            vectors = {tower: values[first:stop] for tower, (values, _) in gathered.items()}
            problems = Problems()
            names = catalog.table(part.index, ("key",))["key"]
            for row in np.flatnonzero(_has_image(catalog, part) & (match.file[first:stop] < 0)).tolist():
                problems.add("unmatched", f"{names[row]}: has no vector")
            for tower, (_, bad) in gathered.items():
                for kind, rows in bad.items():
                    for row in rows[(rows >= first) & (rows < stop)].tolist():
                        problems.add(kind, f"{names[row - first]}: its {tower} vector is {kind.replace('_', ' ')}")
            yield part_result(vectors, problems=problems.counts, examples=problems.examples)
            first = stop

    return work


def _has_image(catalog: Catalog, part: PartRows) -> NDArray[np.bool_]:
    return has_image(catalog.table(part.index, ("status",))["status"]).to_numpy()


def _gather(brought: Brought, tower: Tower, dim: int, match: Match) -> tuple[Vectors, dict[str, NDArray[np.int64]]]:
    out = np.zeros((len(match.file), dim), np.float16)
    bad: dict[str, list[int]] = {"not_finite": [], "zero": []}
    order = np.lexsort((match.row, match.file))
    order = order[match.file[order] >= 0]
    for places in np.split(order, np.flatnonzero(np.diff(match.file[order])) + 1) if len(order) else []:
        file, start = int(match.file[places[0]]), 0
        for values in brought.vectors(tower, dim, file, match.row[places]):
            these = places[start : start + len(values)]
            out[these] = unit = unit_vectors(values)
            unusable = ~unit.any(axis=1)
            finite = np.isfinite(values[unusable].astype(np.float32)).all(axis=1)
            bad["not_finite"] += these[unusable][~finite].tolist()
            bad["zero"] += these[unusable][finite].tolist()
            start += len(values)
        assert start == len(places), f"{len(places) - start} rows lie beyond file {file}"
    return out, {kind: np.array(rows, np.int64) for kind, rows in bad.items()}
