"""SemDeDup, SSP and DBP as stages, against oracles that hold the whole pool in one array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.clustering.stats import ClusterStats
from orchestrator.clustering.train import read_centroids
from orchestrator.embedding.vectors import unit_vectors
from orchestrator.engine.role import Role
from orchestrator.errors import UserError
from orchestrator.pruning.order import random_keys, step_seed
from orchestrator.selection import buckets
from orchestrator.selection.dbp import read_quotas
from orchestrator.selection.similarity import bucket_parts, read_compared
from tests.support.commands import Shell
from tests.support.embedded import EmbeddedPool, artifact, assigned, blobs, write_pool
from tests.support.pools import Selected

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_PAIRS, DIM, K = 900, 16, 6
MISSING = range(0, NUM_PAIRS, 90)
CLUSTERING = {"k": K, "num_iterations": 10, "seed": 5}


def stored(vectors: np.ndarray) -> np.ndarray:
    """The vectors as the artifact stores them and the steps read them."""
    half = vectors.astype(np.float16).astype(np.float32)
    return half / np.linalg.norm(half, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Blobs with near-copies: each of the last 200 is one of the first 200, a little moved."""
    made = blobs(NUM_PAIRS, DIM, K)
    moved = made[:200] + np.random.default_rng(1).standard_normal((200, DIM)).astype(np.float32) * 0.03
    made[-200:] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return made


@pytest.fixture(scope="module")
def pool(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedPool:
    folder = tmp_path_factory.mktemp("embedded")
    return write_pool(folder, [None if i in MISSING else vector for i, vector in enumerate(vectors)])


def ranked(order: str, distance: np.ndarray, ordinals: np.ndarray, seed: int, step: str) -> list[int]:
    """Positions of the pairs, the first to keep first."""
    if order == "random":
        return np.argsort(~random_keys(step_seed(seed, step), ordinals), kind="stable").tolist()
    sign = -1 if order == "hard" else 1
    return sorted(range(len(ordinals)), key=lambda place: (sign * distance[place], ordinals[place]))


@pytest.mark.parametrize("order", ["hard", "easy", "random"])
def test_semdedup_equals_the_full_matrix_of_each_cluster(pool: EmbeddedPool, vectors: np.ndarray, order: str) -> None:
    found = pool.select({"semdedup": {"clustering": CLUSTERING, "eps": 0.02, "order": order, "seed": 4}})
    cluster, distance = assigned(found, "semdedup")
    assert (np.flatnonzero(cluster < 0) == list(MISSING)).all()
    exact, kept = stored(vectors).astype(np.float64), []
    for j in range(K):
        members = np.flatnonzero(cluster == j)
        members = members[ranked(order, distance[members], members, 4, "semdedup")]
        cosines = exact[members] @ exact[members].T
        kept += [i for place, i in enumerate(members) if not (cosines[place, :place] > 1 - 0.02).any()]
    assert found.ordinals() == sorted(kept)
    reasons = found.keep.artifact.totals["reasons"]
    assert reasons == {"no_embedding": len(MISSING), "duplicate": NUM_PAIRS - len(MISSING) - len(kept)}
    assert 150 < reasons["duplicate"] < 250


def test_several_tasks_on_a_large_cluster_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = write_pool(tmp_path / "one", list(blobs(2200, DIM, 2)))
    steps = {"semdedup": {"clustering": {**CLUSTERING, "k": 2}, "eps": 0.02}}
    whole = many.select(steps)
    # clusters of about 1,100 pairs are two tiles and a bit
    monkeypatch.setattr(buckets, "COMPARISONS_PER_TASK", 300_000)
    shared = EmbeddedPool(many.table, many.vectors, tmp_path / "several").select(steps)
    one, several = (artifact(found, Role.COMPARE, "semdedup") for found in (whole, shared))
    assert (len(one.parts), len(several.parts)) == (1, 5)
    assert 3 <= sum(part["pairs"] > 0 for part in several.parts) <= 5, "cut at the tiles of clusters"
    assert one.totals == several.totals == {"pairs": 2200}
    (parts,) = bucket_parts(several)
    for told, expected in zip(read_compared(several, parts), read_compared(one, [0]), strict=True):
        np.testing.assert_array_equal(told, expected)
    assert shared.ordinals() == whole.ordinals()


@pytest.mark.parametrize("order", ["hard", "easy", "random"])
def test_dbp_keeps_each_clusters_quota(pool: EmbeddedPool, order: str) -> None:
    node = {"clustering": CLUSTERING, "keep_fraction": 0.5, "num_neighbours": 2, "order": order, "seed": 4}
    found = pool.select({"dbp": node})
    cluster, distance = assigned(found, "dbp")
    table = read_quotas(artifact(found, Role.QUOTAS, "dbp"))
    assert table["quota"].sum() == NUM_PAIRS // 2
    assert table["size"].to_list() == np.bincount(cluster[cluster >= 0], minlength=K).tolist()
    kept = []
    for j in range(K):
        members = np.flatnonzero(cluster == j)
        np.testing.assert_allclose(table["intra"][j], distance[members].mean(), atol=1e-6)
        kept += members[ranked(order, distance[members], members, 4, "dbp")][: table["quota"][j]].tolist()
    assert found.ordinals() == sorted(kept)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_ssp_fills_its_budget_with_the_farthest_of_all(pool: EmbeddedPool, balance: float) -> None:
    found = pool.select({"ssp": {"clustering": CLUSTERING, "keep_fraction": 0.3, "balance": balance}})
    cluster, distance = assigned(found, "ssp")
    wanted = int(NUM_PAIRS * 0.3)
    kept: set[int] = set()
    for j in range(K):
        members = np.flatnonzero(cluster == j)
        kept |= set(members[ranked("hard", distance[members], members, 0, "ssp")][: int(wanted / K * balance)].tolist())
    everyone = np.flatnonzero(cluster >= 0)
    for i in everyone[ranked("hard", distance[everyone], everyone, 0, "ssp")].tolist():
        if len(kept) < wanted:
            kept.add(i)
    assert found.ordinals() == sorted(kept)


STEPS: dict[str, dict[str, Any]] = {
    "semdedup": {"clustering": CLUSTERING, "eps": 0.02},
    "dbp": {"clustering": {**CLUSTERING, "k": 4}, "keep_fraction": 0.5, "num_neighbours": 2},
}


def test_nothing_depends_on_parts_and_actors(pool: EmbeddedPool, tmp_path: Path) -> None:
    whole = pool.select(STEPS)
    parts = EmbeddedPool(pool.table, pool.vectors, tmp_path).select(STEPS, part_rows=130, actors=3)
    assert len(parts.catalog.rows_per_part) == 7
    assert parts.ordinals() == whole.ordinals()


def test_a_second_clustering_uses_the_pairs_that_the_first_step_kept(pool: EmbeddedPool) -> None:
    found = pool.select(STEPS)
    left = artifact(found, Role.KEEP, "semdedup").totals["kept"]
    assert len(assigned(found, "dbp")[0]) == left
    assert found.keep.num_pairs == left // 2
    assert set(found.ordinals()) < set(found.ordinals([s.name for s in found.stages].index("semdedup")))


def test_words_after_deduplication_are_those_of_the_kept_pairs(pool: EmbeddedPool) -> None:
    found = pool.select({"semdedup": STEPS["semdedup"], "wfpp": {"keep_fraction": 0.5}})
    assert (
        artifact(found, Role.COUNT_WORDS, "wfpp").totals["pairs"]
        == artifact(found, Role.KEEP, "semdedup").totals["kept"]
    )


def test_another_eps_reuses_the_comparison(pool: EmbeddedPool) -> None:
    one = pool.select({"semdedup": STEPS["semdedup"]})
    other = pool.select({"semdedup": {**STEPS["semdedup"], "eps": 0.3}})
    assert [s.artifact for s in one.stages[:-1]] == [s.artifact for s in other.stages[:-1]]
    assert one.stages[-1].artifact != other.stages[-1].artifact
    assert set(other.ordinals()) < set(one.ordinals())


def test_keep_pairs_replaces_keep_fraction(pool: EmbeddedPool) -> None:
    assert pool.select({"dbp": {**STEPS["dbp"], "keep_pairs": 123}}).keep.num_pairs == 123


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"semdedup": {"clustering": {**CLUSTERING, "k": 1000}}}, r"clustering\.k=1,000, but only 890 pairs"),
        ({"dbp": {**STEPS["dbp"], "keep_fraction": 1.0}}, r"selection\.dbp.*900.*890"),
        ({"ssp": {"clustering": CLUSTERING, "keep_fraction": 1.0}}, r"selection\.ssp.*900.*890"),
        (
            {"semdedup": {**STEPS["semdedup"], "eps": 0.3}, "random": {"keep_pairs": 800}},
            r"selection\.random\.keep_pairs=800, but only \d+ pairs reach",
        ),
        ({"clip_score": {"keep_fraction": 0.5}}, r"selection\.clip_score.*text"),
    ],
)
def test_impossible_budgets_are_errors_with_both_numbers(pool: EmbeddedPool, steps: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pool.select(steps)


Degenerate = Callable[[Path], Selected]


def dbp_over(vectors: list[Any], k: int, folder: Path) -> Selected:
    clustering = {"k": k, "num_iterations": 5}
    return write_pool(folder, vectors).select(
        {"semdedup": {"clustering": clustering, "eps": 0.001}, "dbp": {"clustering": {"k": 1}, "keep_fraction": 0.5}}
    )


def test_one_cluster(tmp_path: Path) -> None:
    found = dbp_over(list(blobs(50, 8, 2)), 1, tmp_path)
    assert found.keep.num_pairs == 25


def test_identical_pairs_leave_one_of_each_cluster(tmp_path: Path) -> None:
    found = write_pool(tmp_path, [blobs(1, 8, 1)[0]] * 60).select(
        {"semdedup": {"clustering": {"k": 3, "num_iterations": 5}, "eps": 0.001}}
    )
    sizes = ClusterStats.read(artifact(found, Role.CLUSTER_STATS, "semdedup")).sizes
    assert sizes.sum() == 60
    assert found.keep.num_pairs == (sizes > 0).sum()
    assert found.ordinals()[0] == 0


def test_eps_zero_drops_all_exact_copies_and_nothing_else(tmp_path: Path) -> None:
    originals = blobs(40, 64, 3)
    # the nearest neighbours of one of them in float16: these stay
    near = np.repeat(originals[:1], 5, axis=0)
    near[np.arange(5), np.arange(5)] *= 1.01
    vectors = np.concatenate([originals, np.tile(originals, (4, 1)), near])
    order = np.random.default_rng(0).permutation(len(vectors))
    found = write_pool(tmp_path, list(vectors[order])).select({"semdedup": {"clustering": CLUSTERING, "eps": 0}})
    cluster, distance = assigned(found, "semdedup")
    halves = unit_vectors(vectors[order])
    _, copies = np.unique(halves, axis=0, return_inverse=True)
    firsts = [
        min(np.flatnonzero(copies == one), key=lambda pair: (cluster[pair], -distance[pair], pair))
        for one in range(copies.max() + 1)
    ]
    assert copies.max() + 1 > 40, "some of the near ones differ in float16"
    assert found.ordinals() == sorted(firsts)
    assert found.keep.artifact.totals["reasons"]["duplicate"] == len(vectors) - len(firsts)


def test_empty_clusters_get_no_quota(tmp_path: Path) -> None:
    vectors = [blobs(1, 8, 1)[0]] * 60 + list(blobs(20, 8, 2, seed=1))
    found = write_pool(tmp_path, vectors).select({"dbp": {"clustering": {"k": 30}, "keep_fraction": 0.6}})
    table = read_quotas(artifact(found, Role.QUOTAS, "dbp"))
    assert (table["size"] == 0).any()
    assert table.filter(table["size"] == 0)["quota"].sum() == 0
    assert found.keep.num_pairs == 48


def test_pairs_without_a_vector_are_left_out(tmp_path: Path) -> None:
    vectors: list[Any] = list(blobs(60, 8, 3))
    vectors[3], vectors[7], vectors[11] = [np.nan] * 8, [0.0] * 8, None
    found = write_pool(tmp_path, vectors).select({"ssp": {"clustering": {"k": 3}, "keep_fraction": 0.95}})
    assert found.ordinals() == [i for i in range(60) if i not in (3, 7, 11)]


def test_lloyd_gives_the_same_unit_centroids_for_any_parts(pool: EmbeddedPool, tmp_path: Path) -> None:
    steps = {"ssp": {"clustering": {**CLUSTERING, "trainer": "lloyd"}, "keep_fraction": 0.5}}
    whole = pool.select(steps)
    parts = EmbeddedPool(pool.table, pool.vectors, tmp_path).select(steps, part_rows=100)
    centroids = [read_centroids(artifact(one, Role.TRAIN_CENTROIDS, "ssp")) for one in (whole, parts)]
    np.testing.assert_allclose(np.linalg.norm(centroids[0], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(*centroids)
    assert parts.ordinals() == whole.ordinals()
    objective = artifact(whole, Role.TRAIN_CENTROIDS, "ssp").totals["objective"]
    assert objective == sorted(objective), "Lloyd's algorithm never makes it worse"


def test_the_plan_lists_stages_and_marks_upper_bounds(run_command: Shell, pool: EmbeddedPool, tmp_path: Path) -> None:
    nodes = "selection.steps=[semdedup,dbp] selection.semdedup.embedding=columns selection.dbp.embedding=columns"
    done = run_command(
        f"python -m orchestrator plan +exp=wfpp source=table source.uri={pool.table} source.key_column=key {nodes} "
        f"embedding.columns.uri={pool.vectors} store={tmp_path} out={tmp_path}/out plan.probe=false",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for told in ("embed, columns", "assign, semdedup", "compare, semdedup", "quotas, dbp", "<900", "<360"):
        assert told in done.stdout
    assert not (tmp_path / "out").exists()
