"""A few parts of a pool as a pool of their own, and vectors drawn in place of an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.config.embedding import Tower
from orchestrator.data.catalog import Catalog, PartRows, no_pairs, part_rows
from orchestrator.embedding.vectors import Vectors, embedding_totals, part_result, unit_vectors
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts
from orchestrator.source import Part, PartCatalog, Reads, Source

# a few parts of a million rows would take minutes; with vectors, one does
ENOUGH_ROWS = 100_000
CHUNK_ROWS = 10_000


@dataclass(frozen=True)
class Subset:
    """Some parts of a source, numbered anew; of each at most `max_rows` rows."""

    whole: Source
    chosen: tuple[Part, ...]
    max_rows: int | None = None

    @property
    def has_images(self) -> bool:
        """As of the whole."""
        return self.whole.has_images

    def parts(self) -> list[Part]:
        """The chosen parts."""
        return list(self.chosen)

    def catalog(self, part: Part) -> PartCatalog:
        """A part's catalog, perhaps its beginning only."""
        found = self.whole.catalog(part)
        return found if self.max_rows is None else replace(found, table=found.table.slice(0, self.max_rows))

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """As of the whole."""
        return self.whole.images(part, rows)

    def reads(self, part: Part) -> Reads:
        """As of the whole, without regard to `max_rows`."""
        return self.whole.reads(part)

    def identity(self) -> dict[str, Any]:
        """The whole's, and which of it."""
        chosen = [[part.shard.uri, part.first_row] for part in self.chosen]
        return {"of": self.whole.identity(), "chosen": chosen, "max_rows": self.max_rows}


@dataclass(frozen=True)
class Drawn:
    """A subset and what it is of its pool: its share of what reading takes, and the bytes that a catalog of the whole
    reads; the bytes of a pair's image where the catalog does not say, and how many pairs are read for one."""

    subset: Subset
    share: float
    pool_bytes: float
    image_bytes: float
    rows_per_read: float


def draw_parts(whole: Source, num_parts: int, *, max_rows: int | None = None) -> Drawn:
    """As many parts, or as many as hold enough rows, evenly from the first to the last; of those whose rows are known,
    at most `max_rows` together. Errors: `UserError` for a source without parts."""
    parts = whole.parts()
    if not parts:
        raise no_pairs()
    rows = [part.num_rows for part in parts if part.num_rows is not None]
    if rows:
        num_parts = max(1, min(num_parts, ENOUGH_ROWS * len(rows) // max(1, sum(rows))))
    places = np.unique(np.linspace(0, len(parts) - 1, num_parts).round().astype(int)).tolist()
    chosen = tuple(replace(parts[place], index=index) for index, place in enumerate(places))
    weights = _weights(parts)
    share = sum(weights[place] for place in places) / sum(weights)
    reads = [whole.reads(part) for part in chosen]
    counted = sum(part.num_rows or 0 for part in chosen)
    cut = max_rows // len(chosen) if max_rows is not None and rows else None
    return Drawn(
        subset=Subset(whole, chosen, cut),
        share=share,
        pool_bytes=sum(one.catalog for one in reads) / share,
        image_bytes=sum(one.images or 0 for one in reads) / max(1, counted),
        rows_per_read=max(one.rows_per_read for one in reads),
    )


def _weights(parts: Sequence[Part]) -> list[float]:
    """What reading each part grows with: its rows where some are known, else its bytes; where neither is, all alike."""
    rows = [part.num_rows for part in parts]
    known = [count for count in rows if count]
    if known:
        mean = sum(known) / len(known)
        return [mean if count is None else float(count) for count in rows]
    num_bytes = [float(part.shard.num_bytes) for part in parts]
    return num_bytes if all(num_bytes) else [1.0] * len(parts)


def draw_vectors(artifact: Artifact, catalog: Catalog, dims: Mapping[Tower, int], display: Display) -> None:
    """Builds an embedding's artifact of random unit vectors: what comes after costs the same by any vectors."""
    build_parts(
        artifact,
        part_rows(catalog),
        partial(_draw_work, dims),
        display=display,
        name=f"draw vectors for {artifact.kind}",
        totals=partial(embedding_totals, dims=dims),
    )


def _draw_work(dims: Mapping[Tower, int]) -> Work:
    def work(part: PartRows) -> PartResult:
        rng, starts = np.random.default_rng(part.index), range(0, max(1, part.num_rows), CHUNK_ROWS)
        vectors = {
            tower: np.concatenate([_unit(rng, min(CHUNK_ROWS, part.num_rows - row), dim) for row in starts])
            for tower, dim in dims.items()
        }
        return part_result(vectors, problems={}, examples=[])

    return work


def _unit(rng: np.random.Generator, num_rows: int, dim: int) -> Vectors:
    return unit_vectors(rng.standard_normal((num_rows, dim), np.float32))
