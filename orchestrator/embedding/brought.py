"""An embedding brought along: the files' rows are aligned with the pool, then every part fetches its own vectors.

A part's rows lie in few of the files, near each other, wherever the files were made from the pool's shards: neighbours
are fetched together. Of an `.npy` file nothing else is read; of Parquet the whole column of every row group that holds
one of them, so large row groups are read again for each of the parts that they span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.align import WITHOUT_IMAGE, Aligned, Match, align_stages
from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog, PartRows, part_rows
from orchestrator.config import BroughtConfig, ClipRetrievalEmbedding, ColumnEmbedding, Config
from orchestrator.config.embedding import Tower
from orchestrator.embedding.brought_files import Brought, open_brought
from orchestrator.embedding.vectors import Vectors, embedding_totals, part_result, unit_vectors
from orchestrator.errors import UserError
from orchestrator.parts import PartResult, Work, build_parts
from orchestrator.progress import Display
from orchestrator.source.schema import Problems
from orchestrator.stage import Stage

VERSION = 1


def brought_stages(config: Config, name: str, catalog: Catalog) -> list[Stage]:
    """The alignment, and the vectors in pool order: the last stage's artifact is the embedding.

    Errors: `UserError`, one line, for files that do not go together, here or when built; when built, for more pairs
    without a vector than `max_missing` allows."""
    settings = config.embedding[name]
    assert isinstance(settings, (ClipRetrievalEmbedding, ColumnEmbedding))
    brought = open_brought(settings, name)
    first, *others = align_stages(config.store, catalog, brought.foreign, label=name)
    aligned = Aligned(others[-1].artifact)
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
        work = partial(_work, catalog, brought, aligned, dims)
        totals = partial(embedding_totals, dims=dims)
        return build_parts(artifact, part_rows(catalog), work, display=display, name=f"embed, {name}", totals=totals)

    does = f"fetch the {' and '.join(brought.towers)} vectors brought along"
    gather = Stage(name=f"embed, {name}", does=does, artifact=artifact, build=build, on_whole_pool=True)
    return [replace(first, build=build_first), *others, gather]


def _check_missing(settings: BroughtConfig, name: str, aligned: Aligned) -> None:
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


def _work(catalog: Catalog, brought: Brought, aligned: Aligned, dims: Mapping[Tower, int]) -> Work:
    def work(part: PartRows) -> PartResult:
        match = aligned.part(part)
        names = catalog.table(part.index, ("key",))["key"]
        problems = Problems()
        for row in np.flatnonzero(_has_image(catalog, part) & (match.file < 0)).tolist():
            problems.add("unmatched", f"{names[row]}: has no vector")
        vectors = {}
        for tower, dim in dims.items():
            vectors[tower], bad = _gather(brought, tower, dim, match)
            for kind, rows in bad.items():
                for row in rows:
                    problems.add(kind, f"{names[row]}: its {tower} vector is {kind.replace('_', ' ')}")
        return part_result(vectors, problems=problems.counts, examples=problems.examples)

    return work


def _has_image(catalog: Catalog, part: PartRows) -> NDArray[np.bool_]:
    status = catalog.table(part.index, ("status",))["status"].to_numpy()
    return ~np.isin(status, WITHOUT_IMAGE)


def _gather(brought: Brought, tower: Tower, dim: int, match: Match) -> tuple[Vectors, dict[str, list[int]]]:
    out = np.zeros((len(match.file), dim), np.float16)
    bad: dict[str, list[int]] = {"not_finite": [], "zero": []}
    for file in np.unique(match.file[match.file >= 0]):
        places = np.flatnonzero(match.file == file)
        places = places[np.argsort(match.row[places], kind="stable")]
        start = 0
        for values in brought.vectors(tower, dim, int(file), match.row[places]):
            these = places[start : start + len(values)]
            out[these] = unit = unit_vectors(values)
            unusable = ~unit.any(axis=1)
            finite = np.isfinite(values[unusable].astype(np.float32)).all(axis=1)
            bad["not_finite"] += these[unusable][~finite].tolist()
            bad["zero"] += these[unusable][finite].tolist()
            start += len(values)
        assert start == len(places), f"{len(places) - start} rows lie beyond file {file}"
    return out, bad
