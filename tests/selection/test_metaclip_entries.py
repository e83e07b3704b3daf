"""MetaCLIP's counts are summed once, for all actors that draw pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import PartResult, num_done, part_path, write_part
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.selection import selection_stages
from orchestrator.selection.metaclip import DrawRule, EntrySums, read_counts
from orchestrator.source import open_source
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy
from tests.support.pools import config_of

ENTRIES = ["red", "star", "flag"]
NUM_GROUPS = 5


@pytest.fixture
def groups(tmp_path: Path) -> list[np.ndarray]:
    """The counts of the groups; some of them are too large for a float."""
    return list(np.random.default_rng(0).integers(2**55, 2**60, (NUM_GROUPS, len(ENTRIES))))


def planned(folder: Path) -> tuple[list[Stage], Any]:
    (folder / "entries.txt").write_text("\n".join(ENTRIES))
    (folder / "captions.csv").write_text("caption\na red star\n")
    node = {"metadata": str(folder / "entries.txt"), "t": 2}
    source = {"format": "table", "uri": str(folder / "captions.csv")}
    config = config_of(source, folder / "store", selection={"steps": ["metaclip"], "metaclip": node})
    catalog = Catalog(Artifact.of(config.store, "catalog", version=1))
    return selection_stages(config, open_source(config.source), catalog), config.selection.settings["metaclip"]


def counted(stages: list[Stage], groups: list[np.ndarray]) -> Artifact:
    counts = next(stage.artifact for stage in stages if stage.role == Role.COUNT_ENTRIES)
    parts = [write_part(counts, i, PartResult({"npy": to_npy(group)}, {})) for i, group in enumerate(groups)]
    counts.publish(totals={}, parts=parts, seconds=0.0)
    return counts


def test_an_actor_reads_one_file_of_counts(
    tmp_path: Path, groups: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, settings = planned(tmp_path)
    counts = counted(stages, groups)
    summed = next(stage.artifact for stage in stages if stage.role == Role.SUM_ENTRIES)
    write_part(summed, 0, EntrySums(counts)(None))
    assert num_done(summed) == 1, "a resumed run finds it"
    found = read_counts(summed)
    assert found.dtype == np.int64
    assert found.tolist() == [sum(int(group[i]) for group in groups) for i in range(len(ENTRIES))]
    read: list[str] = []
    kept = files.read
    monkeypatch.setattr(files, "read", lambda uri: read.append(uri) or kept(uri))
    DrawRule.load(Catalog(counts), str(tmp_path / "entries.txt"), summed, settings.t, 0)
    assert [uri for uri in read if uri.endswith(".npy")] == [part_path(summed, 0, "npy")]


def test_the_sum_precedes_the_draw_and_changes_no_keep_list(tmp_path: Path) -> None:
    stages, _ = planned(tmp_path)
    counts, summed, draw = stages[-3:]
    assert summed.artifact.made_from["counts"] == draw.artifact.made_from["counts"] == counts.artifact.fingerprint
    assert summed.scaling.one_task
