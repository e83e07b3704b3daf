"""The shuffle through the store: every row reaches its destination once, in the order of the sources, on disk and in a
bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.engine.shuffle import IN_FLIGHT, column_to_vectors, gather, pack, read_slice, split, vectors_to_column
from orchestrator.storage import files

NUM_DESTINATIONS = 13


def source_table(number: int, num_rows: int = 500) -> tuple[pa.Table, np.ndarray]:
    generator = np.random.default_rng(number)
    # the last destinations get no rows
    destination = generator.integers(0, NUM_DESTINATIONS - 3, num_rows)
    table = pa.table(
        {
            "source": pa.array([number] * num_rows),
            "row": pa.array(range(num_rows)),
            "text": pa.array([f"é{number}-{row}" if row % 7 else None for row in range(num_rows)]),
            "vector": vectors_to_column(generator.normal(size=(num_rows, 24)).astype(np.float16)),
        }
    )
    return table, destination


def check_every_destination(uris: list[str], sources: list[tuple[pa.Table, np.ndarray]]) -> None:
    for number in range(NUM_DESTINATIONS):
        expected = [table.filter(pa.array(destination == number)) for table, destination in sources]
        found = list(gather(uris, number))
        assert [table.to_pylist() for table in found] == [table.to_pylist() for table in expected if table.num_rows]


def test_every_row_reaches_its_destination_in_order(tmp_path: Path) -> None:
    sources = [source_table(number, num_rows) for number, num_rows in enumerate([500, 1, 0, *[30] * (2 * IN_FLIGHT)])]
    uris = [str(tmp_path / f"{number}.exchange") for number in range(len(sources))]
    for uri, (table, destination) in zip(uris, sources, strict=True):
        files.write(uri, pack(split(table, destination, NUM_DESTINATIONS)))
    check_every_destination(uris, sources)
    assert read_slice(uris[0], NUM_DESTINATIONS - 1) is None


def test_slices_hold_no_rows_of_other_destinations() -> None:
    table, destination = source_table(0, 20_000)
    assert len(pack(split(table, destination, NUM_DESTINATIONS))) < 1.05 * table.nbytes


def test_a_column_gives_the_same_vectors_without_a_copy() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float16)
    column = vectors_to_column(vectors)
    assert np.shares_memory(column_to_vectors(column), vectors), "nothing is copied"
    assert (column_to_vectors(column.slice(10, 5)) == vectors[10:15]).all()
    assert (
        column_to_vectors(pa.chunked_array([column.slice(90), column.slice(0, 3)]))
        == vectors[[*range(90, 100), 0, 1, 2]]
    ).all()
    assert column_to_vectors(vectors_to_column(vectors[:0])).shape == (0, 7)


@pytest.mark.parametrize("wrong", [-1, NUM_DESTINATIONS])
def test_a_destination_out_of_range_is_an_error(wrong: int) -> None:
    table, destination = source_table(0)
    destination[3] = wrong
    with pytest.raises(AssertionError, match="destination"):
        split(table, destination, NUM_DESTINATIONS)


def test_a_shuffle_in_a_bucket(s3_bucket: str) -> None:
    sources = [source_table(number, 40) for number in range(4)]
    uris = [f"{s3_bucket}/{number}.exchange" for number in range(4)]
    for uri, (table, destination) in zip(uris, sources, strict=True):
        files.write(uri, pack(split(table, destination, NUM_DESTINATIONS)))
    check_every_destination(uris, sources)
