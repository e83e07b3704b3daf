"""The record of a run, as this version and earlier versions write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.role import Role
from orchestrator.engine.run_record import FILE, RunRecord, StageRecord
from orchestrator.errors import UserError

# kinds and titles of stages, as version 0.1 wrote them, with their present roles and steps
OLD_STAGES = {
    ("catalog", "catalog"): (Role.CATALOG, None),
    ("keep", "pool"): (Role.POOL, None),
    ("align_sent", "sort, list"): (Role.SORT_KEYS, "list"),
    ("align_joined", "join, list"): (Role.JOIN_KEYS, "list"),
    ("aligned", "align, list"): (Role.ORDER_MATCHES, "list"),
    ("keep", "list"): (Role.KEEP, "list"),
    ("entry_counts", "count entries, metaclip"): (Role.COUNT_ENTRIES, "metaclip"),
    ("entry_sums", "sum entries, metaclip"): (Role.SUM_ENTRIES, "metaclip"),
    ("embedding", "embed, mine"): (Role.EMBED, "mine"),
    ("sample", "sample, semdedup"): (Role.SAMPLE, "semdedup"),
    ("centroids", "train centroids, semdedup"): (Role.TRAIN_CENTROIDS, "semdedup"),
    ("clusters", "assign, semdedup"): (Role.ASSIGN_CLUSTERS, "semdedup"),
    ("cluster_stats", "measure clusters, semdedup"): (Role.CLUSTER_STATS, "semdedup"),
    ("by_cluster", "regroup, semdedup"): (Role.REGROUP, "semdedup"),
    ("compared", "compare, semdedup"): (Role.COMPARE, "semdedup"),
    ("similarity", "collect, semdedup"): (Role.COLLECT_SIMILARITY, "semdedup"),
    ("quotas", "quotas, dbp"): (Role.QUOTAS, "dbp"),
    ("word_counts", "count words, wfpp"): (Role.COUNT_WORDS, "wfpp"),
    ("words", "sum words, wfpp"): (Role.SUM_WORDS, "wfpp"),
    ("scores", "score, wfpp"): (Role.SCORE, "wfpp"),
    ("word_counts", "count words, before"): (Role.COUNT_WORDS_BEFORE, None),
    ("words", "sum words, before"): (Role.SUM_WORDS_BEFORE, None),
    ("word_counts", "count words, after"): (Role.COUNT_WORDS_AFTER, None),
    ("words", "sum words, after"): (Role.SUM_WORDS_AFTER, None),
    ("pretrain", "pretrain"): (Role.PRETRAIN, None),
    ("keep", "captioned"): (Role.CAPTIONED, None),
    ("finetune", "finetune"): (Role.FINETUNE, None),
    ("evaluation", "evaluate"): (Role.EVALUATE, None),
}


def write(folder: Path, stages: list[dict[str, Any]]) -> None:
    found = {"name": "demo", "verb": "run", "config": {}, "versions": {"ray": "2.60.0"}, "wall_seconds": 1.5}
    (folder / FILE).write_text(json.dumps(found | {"started": "2026-11-01T10:00:00+00:00", "stages": stages}))


def old_stage(kind: str, title: str) -> dict[str, Any]:
    made_from = {"kind": kind, "version": 1}
    return {
        "name": title,
        "kind": kind,
        "uri": f"/store/{kind}/0f",
        "made_from": made_from,
        "reused": False,
        "seconds": 0.3,
    }


def test_a_record_of_an_earlier_version_gets_roles_and_steps(tmp_path: Path) -> None:
    write(tmp_path, [old_stage(kind, title) for kind, title in OLD_STAGES])
    record = RunRecord.read(str(tmp_path))
    assert [(stage.role, stage.step) for stage in record.stages] == list(OLD_STAGES.values())
    stats = record.find(Role.CLUSTER_STATS, "semdedup")
    assert stats is not None
    assert stats.uri == "/store/cluster_stats/0f"
    assert record.find(Role.CLUSTER_STATS, "dbp") is None
    assert [stage.step for stage in record.with_role(Role.KEEP)] == ["list"]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    stage = StageRecord(
        name="a title that changed, dbp",
        role=Role.QUOTAS,
        step="dbp",
        kind="quotas",
        uri="/store/quotas/1",
        made_from={},
        reused=True,
        seconds=0.1,
    )
    record = RunRecord(
        name="n", verb="select", config={"a": 1}, stages=[stage], versions={}, started="now", wall_seconds=2.0
    )
    record.write(str(tmp_path))
    assert RunRecord.read(str(tmp_path)) == record


@pytest.mark.parametrize(
    "stage",
    [
        old_stage("holograms", "holograms, dbp"),
        old_stage("quotas", "quotas, dbp") | {"role": "polish", "step": "dbp"},
        {"name": "catalog"},
    ],
)
def test_an_unknown_stage_is_refused_in_one_line(stage: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, [stage])
    with pytest.raises(UserError, match=r"cannot read .*run\.json: expected the record of a run") as caught:
        RunRecord.read(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_record_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run at .*: expected run\.json"):
        RunRecord.read(str(tmp_path))
