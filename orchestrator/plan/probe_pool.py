"""The probe's data: a few parts of the pool, the first rows of lists to join with it, and random vectors.

Rows of a list may belong to pairs outside the probe, so few of them may match. What a join leaves in the store is then
measured too low. Its time is not, because both sides are sorted and compared completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.config import Config, KeepListStep
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.data.catalog import Catalog, PartRows, no_pairs, part_rows
from orchestrator.data.external_list import ExternalList, Piece
from orchestrator.embedding.precomputed_files import open_precomputed
from orchestrator.embedding.vectors import Vectors, embedding_totals, part_result, unit_vectors
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob
from orchestrator.selection.keep_list import open_list
from orchestrator.source import Part, PartCatalog, Reads, Source

# parts of a million rows take minutes, and one part with vectors takes as long: fewer parts are sampled then
ENOUGH_ROWS = 100_000
CHUNK_ROWS = 10_000


@dataclass(frozen=True)
class Subset:
    """Some parts of a source, with new numbers and at most `max_rows` rows each."""

    whole: Source
    chosen: tuple[Part, ...]
    max_rows: int | None = None

    @property
    def has_images(self) -> bool:
        """Same as the whole source."""
        return self.whole.has_images

    def parts(self) -> list[Part]:
        """Return the chosen parts."""
        return list(self.chosen)

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a part, limited to `max_rows` rows."""
        found = self.whole.catalog(part)
        return found if self.max_rows is None else replace(found, table=found.table.slice(0, self.max_rows))

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """Yield images like the whole source."""
        return self.whole.images(part, rows)

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Read fields of a part, limited to `max_rows` rows."""
        return self.whole.fields(part, keys, names).slice(0, len(keys))

    def reads(self, part: Part) -> Reads:
        """Return the reads of the whole part, regardless of `max_rows`."""
        return self.whole.reads(part)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the whole source and the chosen parts."""
        chosen = [[part.shard.uri, part.first_row] for part in self.chosen]
        return {"of": self.whole.identity(), "chosen": chosen, "max_rows": self.max_rows}


@dataclass(frozen=True)
class PoolSample:
    """A sample of a pool.

    `share` is its share of the pool by reading, `pool_bytes` the bytes that the catalog of the whole pool reads.
    `image_bytes` are per pair, 0 if the catalog has the sizes. `rows_per_read` pairs are read to get one image."""

    subset: Subset
    share: float
    pool_bytes: float
    image_bytes: float
    rows_per_read: float


def sample_parts(whole: Source, num_parts: int, *, max_rows: int | None = None) -> PoolSample:
    """Choose parts at even distances from the first to the last: `num_parts`, or fewer if these have enough rows.

    If the numbers of rows are known, at most `max_rows` rows are used in total.
    Errors: `UserError` for a source without parts."""
    parts = whole.parts()
    if not parts:
        raise no_pairs()
    rows = [part.num_rows for part in parts if part.num_rows is not None]
    if rows:
        num_parts = max(1, min(num_parts, ENOUGH_ROWS * len(rows) // max(1, sum(rows))))
    chosen_indices = np.unique(np.linspace(0, len(parts) - 1, num_parts).round().astype(int)).tolist()
    chosen = tuple(replace(parts[place], index=index) for index, place in enumerate(chosen_indices))
    weights = _weights(parts)
    share = sum(weights[place] for place in chosen_indices) / sum(weights)
    reads = [whole.reads(part) for part in chosen]
    counted = sum(part.num_rows or 0 for part in chosen)
    cut = max_rows // len(chosen) if max_rows is not None and rows else None
    return PoolSample(
        subset=Subset(whole, chosen, cut),
        share=share,
        pool_bytes=sum(one.catalog for one in reads) / share,
        image_bytes=sum(one.images or 0 for one in reads) / max(1, counted),
        rows_per_read=max(one.rows_per_read for one in reads),
    )


def _weights(parts: Sequence[Part]) -> list[float]:
    """Return the weight of each part: its rows if any are known, else its bytes; equal weights if neither is known."""
    rows = [part.num_rows for part in parts]
    known = [count for count in rows if count]
    if known:
        mean = sum(known) / len(known)
        return [mean if count is None else float(count) for count in rows]
    num_bytes = [float(part.shard.num_bytes) for part in parts]
    return num_bytes if all(num_bytes) else [1.0] * len(parts)


def draw_vectors(artifact: Artifact, catalog: Catalog, dims: Mapping[Tower, int], display: Display) -> None:
    """Build an embedding of random unit vectors. The cost of later stages does not depend on the vectors' values."""
    PartsJob(
        artifact,
        part_rows(catalog),
        partial(_DrawVectors, dims),
        name=f"draw vectors for {artifact.kind}",
        totals=partial(embedding_totals, dims=dims),
    ).build(display)


@dataclass(frozen=True)
class _DrawVectors:
    """The work on one part: random unit vectors of every tower."""

    dims: Mapping[Tower, int]

    def __call__(self, part: PartRows) -> PartResult:
        rng, starts = np.random.default_rng(part.index), range(0, max(1, part.num_rows), CHUNK_ROWS)
        vectors = {
            tower: np.concatenate([_unit(rng, min(CHUNK_ROWS, part.num_rows - row), dim) for row in starts])
            for tower, dim in self.dims.items()
        }
        return part_result(vectors, problems={}, examples=[])


def _unit(rng: np.random.Generator, num_rows: int, dim: int) -> Vectors:
    return unit_vectors(rng.standard_normal((num_rows, dim), np.float32))


@dataclass(frozen=True)
class FirstRows(ExternalList):
    """The first piece of a list."""

    def pieces(self) -> list[Piece]:
        """Return the first piece. Errors: those of the whole list."""
        return super().pieces()[:1]

    def identity(self) -> dict[str, Any]:
        """Return the identity of the whole list, marked as its beginning."""
        return {**super().identity(), "rows": "first"}


def first_rows(whole: ExternalList) -> FirstRows:
    """Return the beginning of a list: its first file, so that only one footer is read."""
    first = replace(whole, files=whole.files[:1])
    return FirstRows(first.files, first.match_by, first.match_column, first.setting)


def lists_of(config: Config) -> dict[str, ExternalList]:
    """Return the external embeddings and keep lists that a run joins with its pool, by the label of the stages."""
    found: dict[str, ExternalList] = {}
    for name in config.selection.steps:
        step, embedding = config.selection.settings[name], config.selection.embedding_of(name)
        if embedding is not None and not isinstance(settings := config.embedding[embedding], EncoderConfig):
            found[embedding] = open_precomputed(settings, embedding).external_list
        if isinstance(step, KeepListStep):
            found[name] = open_list(step, name)
    return found
