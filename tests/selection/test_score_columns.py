"""The score of a step is one column for its threshold, the report, an export and the Python API."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from orchestrator import Run
from orchestrator.clustering.assign import read_assigned
from orchestrator.data.keep_list import KeepList
from orchestrator.embedding.vectors import unit_vectors
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.export import export_keep_list
from orchestrator.pruning.clusters import unit
from orchestrator.report.examples import example_pairs
from orchestrator.report.schema_pairs import ExampleGroup
from orchestrator.report.selected import SelectedStep, selected_steps, step_reports
from orchestrator.selection import score_columns
from tests.support.embedded import blobs
from tests.support.report_runs import select

NUM_PAIRS, DIM, PART_ROWS, EPS = 400, 12, 150, 0.05
CLUSTERING = {"k": 4, "num_iterations": 5, "seed": 1}
GEOMETRY = {"embedding": "mine", "clustering": CLUSTERING}
STEPS = {
    "wfpp": {"keep_fraction": 0.9, "min_count": 1, "t": 1e-3},
    "semdedup": {**GEOMETRY, "eps": EPS},
    "clip_score": {"embedding": "mine", "keep_fraction": 0.8},
    "floor": {"method": "clip_score", "embedding": "mine", "threshold": -0.4},
    "random": {"keep_fraction": 0.95},
    "ssp": {**GEOMETRY, "keep_fraction": 0.8},
    "easy": {"method": "ssp", **GEOMETRY, "keep_fraction": 0.9, "order": "easy"},
    "drawn": {"method": "dbp", **GEOMETRY, "keep_fraction": 0.9, "order": "random"},
    "dbp": {**GEOMETRY, "keep_fraction": 0.6, "num_neighbours": 2},
}
SCORED = ("wfpp", "semdedup", "clip_score", "floor", "ssp", "easy", "dbp")
Values = NDArray[np.float64]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Unit vectors; the last 40 are near-copies of the first."""
    made = blobs(NUM_PAIRS, DIM, 4)
    made[-40:] = unit(made[:40] + np.random.default_rng(1).standard_normal((40, DIM)).astype(np.float32) * 0.03)
    return made


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return blobs(NUM_PAIRS, DIM, 4, seed=2)


@pytest.fixture(scope="module")
def pool(image: np.ndarray, text: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of captions, and image and text vectors of all but three pairs."""
    folder = tmp_path_factory.mktemp("scored")
    keys = [f"k{number:04d}" for number in range(NUM_PAIRS)]
    captions = [f"picture {number % 11} of {'red ' * (number % 5)}stars" for number in range(NUM_PAIRS)]
    (folder / "table").mkdir()
    pl.DataFrame({"key": keys, "caption": captions}).write_parquet(folder / "table" / "0.parquet")
    vectors = {"key": keys, "image_embedding": image.tolist(), "text_embedding": text.tolist()}
    pl.DataFrame(vectors)[3:].write_parquet(folder / "vectors.parquet")
    return folder


def run_of(pool: Path, out: Path, *names: str) -> RunRecord:
    source = {"format": "table", "uri": str(pool / "table"), "key_column": "key", "part_rows": PART_ROWS}
    mine = {"kind": "columns", "uri": str(pool / "vectors.parquet"), "text_column": "text_embedding"}
    nodes = {name: STEPS[name] for name in names}
    return select(source, {"steps": list(names), **nodes}, out, embedding={"mine": mine})


@pytest.fixture(scope="module")
def out(pool: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all steps, one after the other."""
    folder = tmp_path_factory.mktemp("out")
    run_of(pool, folder, *STEPS)
    return folder


@pytest.fixture(scope="module")
def record(out: Path) -> RunRecord:
    return RunRecord.read(str(out / "out"))


@pytest.fixture(scope="module")
def columns(record: RunRecord) -> dict[str, Values]:
    """The scores of the whole pool by step, NaN where there is none."""
    sizes = [PART_ROWS, PART_ROWS, NUM_PAIRS - 2 * PART_ROWS]
    return {
        column.step: np.concatenate([column.of_part(index, rows) for index, rows in enumerate(sizes)])
        for column in score_columns(record)
    }


def whole(artifact: KeepList) -> NDArray[np.bool_]:
    sizes = [PART_ROWS, PART_ROWS, NUM_PAIRS - 2 * PART_ROWS]
    return np.concatenate([artifact.mask(index, rows) for index, rows in enumerate(sizes)])


def step_of(record: RunRecord, name: str) -> SelectedStep:
    return next(step for step in selected_steps(record) if step.name == name)


def reached(record: RunRecord, name: str) -> NDArray[np.bool_]:
    return whole(KeepList(step_of(record, name).incoming))


def kept(record: RunRecord, name: str) -> NDArray[np.bool_]:
    return whole(KeepList(step_of(record, name).outgoing))


def assigned(record: RunRecord, name: str) -> tuple[NDArray[np.int64], Values]:
    """Cluster (-1: did not reach the step, or has no vector) and distance of every pair of the pool."""
    found = record.find(Role.ASSIGN_CLUSTERS, name)
    assert found is not None
    parts = [read_assigned(found, index) for index in range(3)]
    clusters, distances = np.full(NUM_PAIRS, -1), np.full(NUM_PAIRS, np.nan)
    clusters[reached(record, name)] = np.concatenate([part.cluster for part in parts])
    distances[reached(record, name)] = np.concatenate([part.distance for part in parts])
    return clusters, distances


def test_steps_with_a_ranking_or_a_threshold_have_a_score(record: RunRecord) -> None:
    assert [column.name for column in score_columns(record)] == [f"score_{name}" for name in SCORED]
    assert [column.keeps for column in score_columns(record)] == [
        *("highest", "lowest", "highest", "highest", "highest", "lowest", "highest")
    ]
    for column in score_columns(record):
        assert pickle.loads(pickle.dumps(column)) == column


def test_clip_scores_are_the_cosines(
    record: RunRecord, columns: dict[str, Values], image: np.ndarray, text: np.ndarray
) -> None:
    # of the vectors before they are rounded to float16
    cosines = np.einsum("nd,nd->n", image.astype(np.float64), text.astype(np.float64))
    for name in ("clip_score", "floor"):
        expected = np.where(reached(record, name) & (np.arange(NUM_PAIRS) >= 3), cosines, np.nan)
        np.testing.assert_allclose(columns[name], expected, atol=2e-7)


@pytest.mark.parametrize("name", ["ssp", "easy", "dbp"])
def test_ssp_and_dbp_have_the_distance(record: RunRecord, columns: dict[str, Values], name: str) -> None:
    np.testing.assert_array_equal(columns[name], assigned(record, name)[1])


def test_semdedup_has_the_highest_similarity_to_an_earlier_pair(
    record: RunRecord, columns: dict[str, Values], image: np.ndarray
) -> None:
    clusters, distances = assigned(record, "semdedup")
    exact = unit(unit_vectors(image)).astype(np.float64)
    for cluster in range(CLUSTERING["k"]):
        members = np.flatnonzero(clusters == cluster)
        # the farthest first, equal ones by position
        members = members[np.argsort(-distances[members], kind="stable")]
        for place, pair in enumerate(members.tolist()):
            expected = max((exact[members[:place]] @ exact[pair]).tolist(), default=-np.inf)
            assert columns["semdedup"][pair] == pytest.approx(expected, abs=1e-6)
    assert (np.isnan(columns["semdedup"]) == (clusters < 0)).all()
    rows = reached(record, "semdedup")
    assert (kept(record, "semdedup")[rows] == (columns["semdedup"][rows] <= np.float32(1 - EPS))).all()


def test_export_and_python_api_have_the_same_scores(out: Path, record: RunRecord, columns: dict[str, Values]) -> None:
    export_keep_list(record, str(out / "kept.parquet"), Display())
    exported = pq.read_table(out / "kept.parquet")
    assert exported.column_names[:3] == ["shard", "row", "key"]
    rows = np.flatnonzero(kept(record, "dbp"))
    pairs = Run(out / "out").pairs.collect()
    for name, values in columns.items():
        np.testing.assert_array_equal(exported[f"score_{name}"].to_numpy(), values[rows])
        expected = [None if np.isnan(value) else value for value in values.tolist()]
        assert pairs[f"score_{name}"].to_list() == expected


def test_a_single_score_is_named_score(pool: Path, ray_cluster: str, tmp_path: Path) -> None:
    record = run_of(pool, tmp_path, "random", "clip_score")
    export_keep_list(record, str(tmp_path / "kept.parquet"), Display())
    exported = pq.read_table(tmp_path / "kept.parquet")
    # `source_key` is not exported: the key column of the table is named `key`
    assert exported.column_names == ["shard", "row", "key", "score", "caption"]
    (column,) = score_columns(record)
    assert column.label == "CLIP score, cosine of image and caption"
    pairs = Run(tmp_path / "out").pairs.filter("kept").collect()
    assert exported["score"].to_pylist() == pairs["score"].to_list()
    (step,) = [report for report in step_reports(selected_steps(record)) if report.name == "clip_score"]
    assert step.threshold == min(exported["score"].to_pylist())
    examples = example_pairs(selected_steps(record))
    assert examples is not None
    assert examples.score == column.label
    assert [group.name for group in examples.groups] == ["highest", "above", "below", "lowest"]


def test_records_of_earlier_versions_have_the_scores(out: Path, columns: dict[str, Values], tmp_path: Path) -> None:
    written = json.loads((out / "out" / "run.json").read_text())
    for stage in written["stages"]:
        # earlier versions wrote neither
        del stage["role"], stage["step"]
    (tmp_path / "run.json").write_text(json.dumps(written))
    pairs = Run(tmp_path).pairs.select(f"score_{name}" for name in SCORED).collect()
    for name, values in columns.items():
        np.testing.assert_array_equal(pairs[f"score_{name}"].to_numpy(), values)


def test_thresholds_are_the_score_of_the_last_pair_kept(record: RunRecord, columns: dict[str, Values]) -> None:
    reports = {report.name: report for report in step_reports(selected_steps(record))}
    last: dict[str, Callable[..., float]] = {"semdedup": np.max, "easy": np.max}
    for name in SCORED:
        expected = last.get(name, np.min)(columns[name][kept(record, name)])
        # the clusters of DBP have thresholds of their own
        assert reports[name].threshold == (None if name == "dbp" else expected), name
    assert reports["random"].threshold is None
    assert reports["drawn"].threshold is None
    assert [name for name, report in reports.items() if report.no_words is not None] == ["wfpp"]


def groups_of(record: RunRecord, name: str) -> dict[str, ExampleGroup]:
    steps = selected_steps(record)
    until = next(number for number, step in enumerate(steps) if step.name == name)
    examples = example_pairs(steps[: until + 1])
    assert examples is not None
    assert examples.step == name
    return {group.name: group for group in examples.groups}


def numbers(group: ExampleGroup) -> list[int]:
    return [pair.part * PART_ROWS + pair.row for pair in group.pairs]


@pytest.mark.parametrize("name", ["semdedup", "clip_score", "ssp", "easy", "dbp"])
def test_examples_lie_next_to_the_threshold(record: RunRecord, columns: dict[str, Values], name: str) -> None:
    sign = -1 if name in ("semdedup", "easy") else 1
    values, mask = sign * columns[name], kept(record, name)
    groups = assigned(record, name)[0] if name == "dbp" else np.zeros(NUM_PAIRS, int)
    limits = {group: values[mask & (groups == group)].min() for group in np.unique(groups[mask])}
    margins = np.array([value - limits.get(group, np.inf) for value, group in zip(values, groups, strict=True)])
    shown = groups_of(record, name)
    for group in shown.values():
        assert [pair.score for pair in group.pairs] == columns[name][numbers(group)].tolist()
    finite = np.isfinite(columns[name])
    for title, side, order in (("above", mask, margins), ("below", ~mask & reached(record, name), -margins)):
        found = numbers(shown[title])
        assert side[found].all()
        # captions repeat and each is shown once, so the pairs shown are the first of their captions
        assert order[found].tolist() == sorted(order[found].tolist())
        assert order[found[0]] == order[side & finite].min()
    assert values[numbers(shown["highest"])[0]] == values[mask & finite].max()
    assert values[numbers(shown["lowest"])[0]] == values[~mask & reached(record, name) & finite].min()


def test_steps_without_a_score_draw_their_examples(record: RunRecord) -> None:
    assert list(groups_of(record, "random")) == list(groups_of(record, "drawn")) == ["kept", "pruned"]
