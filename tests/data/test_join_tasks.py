"""The work of a join's tasks, without Ray: each is pickled, as it is for a task, and called."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.catalog import part_rows
from orchestrator.data.external_list import ExternalList
from orchestrator.data.join import Joined, join_stages
from orchestrator.data.join_tasks import Group, JoinBucket, OrderGroup, SendRows
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import write_part
from orchestrator.source import Status
from tests.support.pools import write_catalog

PAIRS: list[dict[str, Any]] = [
    {"key": "a", "url": "u/1"},
    {"key": "b", "url": "u/2", "status": Status.BAD_IMAGE},
    {"key": "c", "url": None},
    {"key": "d", "url": "u/1"},
    {"key": "e", "url": "u/3"},
]
LISTED = ["u/9", "u/1", "u/1", "u/2"]


def sent(work: Any) -> Any:
    return pickle.loads(pickle.dumps(work))


def test_tasks_join_what_they_are_sent(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog", PAIRS, [3, 2])
    (tmp_path / "list").mkdir()
    pq.write_table(pa.table({"url": LISTED}), tmp_path / "list" / "0.parquet")
    listed = ExternalList.find(str(tmp_path / "list"), match_by="url", match_column=None, setting="selection.keep_list")
    rows, joined, ordered = (Artifact.of(str(tmp_path), kind, version=1) for kind in ("rows", "joined", "ordered"))
    groups = [Group(number, (part,)) for number, part in enumerate(part_rows(catalog))]
    send = sent(SendRows(catalog, listed, 2))
    for index, item in enumerate([*groups, tuple(listed.pieces())]):
        write_part(rows, index, send(item))
    join = sent(JoinBucket(rows, 3, 2))
    counts = [write_part(joined, bucket, join(bucket)) for bucket in range(2)]
    assert sum(count["matched"] for count in counts) == 3
    assert [value for count in counts for value in count["list_examples"]] == ["u/9"]
    order = sent(OrderGroup(joined, 2))
    ordered.publish(totals={}, parts=[write_part(ordered, group.number, order(group)) for group in groups], seconds=0)
    matches = [Joined(ordered).part(part).row.tolist() for part in part_rows(catalog)]
    assert matches == [[1, 3, -1], [1, -1]], "the first of two rows with one value counts"


def test_the_stages_builds_can_be_pickled(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog", PAIRS, [3, 2])
    pq.write_table(pa.table({"url": LISTED}), tmp_path / "0.parquet")
    listed = ExternalList.find(str(tmp_path / "0.parquet"), match_by="url", match_column=None, setting="embedding.mine")
    for stage in join_stages(str(tmp_path), catalog, listed, label="mine"):
        assert sent(stage.build) == stage.build
        assert sent(stage.scaling).work(5) == stage.scaling.work(5)
    assert join_stages(str(tmp_path), catalog, listed, label="mine")[0].scaling.work(5) == 5 + len(LISTED)
