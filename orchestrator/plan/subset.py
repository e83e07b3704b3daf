"""A few parts of a pool as a pool of their own, and vectors drawn in place of an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog, PartRows, part_rows
from orchestrator.config.embedding import Tower
from orchestrator.embedding.vectors import embedding_totals, part_result, unit_vectors
from orchestrator.parts import PartResult, Work, build_parts
from orchestrator.progress import Display
from orchestrator.source import Part, PartCatalog, Source

ROWS = 100_000


@dataclass(frozen=True)
class Subset:
    """The parts of a source at the given places; of each at most `max_rows` rows, and of a range of rows the first
    `ROWS`."""

    whole: Source
    places: tuple[int, ...]
    max_rows: int | None = None

    @classmethod
    def spread(cls, whole: Source, num_parts: int) -> Subset:
        """As many parts, evenly from the first to the last."""
        last = len(whole.parts()) - 1
        return cls(whole, tuple(np.unique(np.linspace(0, last, num_parts).round().astype(int)).tolist()))

    @property
    def has_images(self) -> bool:
        """As of the whole."""
        return self.whole.has_images

    def parts(self) -> list[Part]:
        """The chosen parts, numbered anew."""
        parts = self.whole.parts()
        return [_beginning(replace(parts[place], index=index)) for index, place in enumerate(self.places)]

    def catalog(self, part: Part) -> PartCatalog:
        """A part's catalog, perhaps its beginning only."""
        found = self.whole.catalog(part)
        return found if self.max_rows is None else replace(found, table=found.table.slice(0, self.max_rows))

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """As of the whole."""
        return self.whole.images(part, rows)

    def identity(self) -> dict[str, Any]:
        """The whole's, and which of it."""
        return {"of": self.whole.identity(), "places": list(self.places), "max_rows": self.max_rows}


def _beginning(part: Part) -> Part:
    return part if part.num_rows is None else replace(part, num_rows=min(part.num_rows, ROWS))


def size_of(parts: list[Part]) -> int:
    """What reading the parts grows with: their rows where those are known, else their bytes."""
    rows = [part.num_rows for part in parts]
    known = [count for count in rows if count is not None]
    return sum(known) if len(known) == len(rows) else num_bytes(parts)


def num_bytes(parts: list[Part]) -> int:
    """The bytes of the parts' shards, each once."""
    return sum({part.shard.uri: part.shard.num_bytes for part in parts}.values())


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
        rng = np.random.default_rng(part.index)
        vectors = {
            tower: unit_vectors(rng.standard_normal((part.num_rows, dim), np.float32)) for tower, dim in dims.items()
        }
        return part_result(vectors, problems={}, examples=[])

    return work
