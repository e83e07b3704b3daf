"""Clusterings and clusters in the report, compared with the run's artifacts; and their sections on the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from orchestrator.clustering.assign import read_assigned
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.report.clusters import PAIRS_PER_ROW
from orchestrator.report.page import render
from orchestrator.report.schema import Report
from orchestrator.report.schema_pairs import ClusterSheet
from orchestrator.report.thumbnails import Thumbnails
from orchestrator.report.write import build_report, write_report
from orchestrator.selection.dbp import read_quotas
from tests.support.geometry_pool import NUM_COPIES, NUM_DISTINCT
from tests.support.report_runs import HOSTILE, Elements

STEPS = {"semdedup": None, "dbp": "semdedup", "ssp": "dbp"}
NUM_LEFT = NUM_DISTINCT + 3


@pytest.fixture(scope="module")
def out(clustered: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(str(folder), clustered)
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_text())


def artifact(record: RunRecord, role: Role, step: str | None) -> Artifact:
    found = record.find(role, step)
    assert found is not None, (role, step)
    return found


def reached(record: RunRecord, step: str) -> dict[tuple[int, int], tuple[int, float, bool]]:
    """Return (cluster, distance, kept) for every pair that reached a step, by (part, row)."""
    before = STEPS[step]
    incoming = KeepList(artifact(record, Role.KEEP if before else Role.POOL, before))
    outgoing = KeepList(artifact(record, Role.KEEP, step))
    pairs = {}
    for part, num_rows in enumerate(Catalog(record.of_kind("catalog")[0]).rows_per_part):
        found, kept = read_assigned(artifact(record, Role.ASSIGN_CLUSTERS, step), part), outgoing.mask(part, num_rows)
        rows = np.flatnonzero(incoming.mask(part, num_rows))
        for row, cluster, distance in zip(rows.tolist(), found.cluster.tolist(), found.distance.tolist(), strict=True):
            pairs[part, row] = (cluster, distance, bool(kept[row]))
    return pairs


def test_every_dropped_pair_has_a_reason(report: Report) -> None:
    dbp_kept = int(0.7 * NUM_LEFT)
    assert [(step.name, step.budget, step.reasons) for step in report.steps] == [
        ("semdedup", None, {"no_embedding": 1, "duplicate": NUM_COPIES}),
        ("dbp", dbp_kept, {"below_the_cut": NUM_LEFT - dbp_kept}),
        ("ssp", 30, {"below_the_cut": dbp_kept - 30}),
    ]
    assert all(step.pairs_in - step.pairs_out == sum(step.reasons.values()) for step in report.steps)


@pytest.mark.parametrize("step", STEPS)
def test_clustering_numbers_agree_with_its_artifacts(clustered: RunRecord, report: Report, step: str) -> None:
    shown, totals = report.clusterings[step], artifact(clustered, Role.TRAIN_CENTROIDS, step).totals
    clusters = [cluster for cluster, _, _ in reached(clustered, step).values() if cluster >= 0]
    sizes = np.bincount(clusters, minlength=shown.k)
    filled = sizes[sizes > 0]
    assert shown.k == {"semdedup": 4, "dbp": 5, "ssp": 3}[step]
    assert (shown.pairs, shown.empty, shown.iterations) == (
        len(clusters),
        shown.k - len(filled),
        len(totals["objective"]),
    )
    assert (shown.sizes.min, shown.sizes.median, shown.sizes.max) == (filled.min(), np.median(filled), filled.max())
    assert (shown.objective_first, shown.objective_last) == (totals["objective"][0], totals["objective"][-1])
    assert (shown.sampled, shown.restarts) == (totals["sampled"], totals["restarts"])


@pytest.mark.parametrize("step", ["dbp", "ssp"])
def test_clusters_agree_with_the_assignment(clustered: RunRecord, report: Report, step: str) -> None:
    pairs, shown = list(reached(clustered, step).values()), report.clusters[step]
    assert sorted(each.cluster for each in shown.clusters) == sorted({cluster for cluster, _, _ in pairs})
    for each in shown.clusters:
        mine = [(distance, kept) for cluster, distance, kept in pairs if cluster == each.cluster]
        assert each.size == len(mine)
        assert each.d_intra == pytest.approx(np.mean([distance for distance, _ in mine]), abs=1e-6)
        if step == "dbp":
            assert each.quota == sum(kept for _, kept in mine)
            assert each.complexity == pytest.approx(each.d_intra * (each.d_inter or 0.0))
    order = [getattr(each, shown.ordered_by) for each in shown.clusters]
    assert order == sorted(order)
    assert shown.ordered_by == {"dbp": "complexity", "ssp": "d_intra"}[step]


def test_d_inter_agrees_with_the_quotas(clustered: RunRecord, report: Report) -> None:
    inter = dict(read_quotas(artifact(clustered, Role.QUOTAS, "dbp")).select("cluster", "inter").iter_rows())
    assert all(each.d_inter == inter[each.cluster] for each in report.clusters["dbp"].clusters)


@pytest.mark.parametrize("step", ["dbp", "ssp"])
def test_examples_belong_to_their_cluster_and_side(clustered: RunRecord, report: Report, step: str) -> None:
    pairs, shown = reached(clustered, step), report.clusters[step]
    sheets = [*shown.densest, *shown.most_spread]
    assert len(shown.densest) == len(shown.most_spread) > 0
    assert len({sheet.cluster.cluster for sheet in sheets}) == len(sheets)
    for sheet in sheets:
        assert sheet.num_kept == check_side(sheet, pairs, kept=True)
        check_side(sheet, pairs, kept=False)
    large = [each for each in shown.clusters if each.size >= np.median([one.size for one in shown.clusters]) / 2]
    assert [sheet.cluster for sheet in shown.densest] == large[: len(shown.densest)]
    assert [sheet.cluster for sheet in shown.most_spread] == large[::-1][: len(shown.most_spread)]


def check_side(sheet: ClusterSheet, pairs: dict[tuple[int, int], tuple[int, float, bool]], *, kept: bool) -> int:
    """Compare the shown pairs with all kept or pruned pairs of the cluster; return the number of the latter."""
    mine = {place for place, (cluster, _, fate) in pairs.items() if (cluster, fate) == (sheet.cluster.cluster, kept)}
    shown = sheet.kept if kept else sheet.pruned
    assert len(shown) == min(PAIRS_PER_ROW, len(mine))
    assert {(pair.part, pair.row) for pair in shown} <= mine
    assert [pair.score for pair in shown] == sorted(pairs[pair.part, pair.row][1] for pair in shown)
    return len(mine)


def test_report_is_deterministic(clustered: RunRecord, report: Report) -> None:
    again = build_report(clustered)
    assert (again.clusters, again.duplicates) == (report.clusters, report.duplicates)


def test_page_shows_images_and_escapes_captions(out: Path, report: Report) -> None:
    page, elements = (out / "report.html").read_text(), Elements()
    elements.feed(page)
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert set(HOSTILE) <= {attributes["alt"] for tag, attributes in elements.found if tag == "img"}
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    labels = ("cosine to the nearest earlier pair", "d_inter", "d_intra", "share of the cluster kept", "quota = size")
    assert all(label in "".join(plots) for label in labels)
    assert set(re.findall(r"#[0-9a-f]{6}\b", "".join(plots))) <= {"#000000", "#ffffff"}
    assert "near-duplicate of an earlier pair" in page
    assert f"copies of {report.duplicates['semdedup'].num_groups} kept pairs" in page


def test_page_without_images_shows_escaped_captions(report: Report) -> None:
    page = render(report, Thumbnails(missing="<b>gone</b>"))
    assert "<img" not in page
    assert "<b>gone" not in page
    assert all(str(escape(caption)) in page for caption in HOSTILE)
    assert "<script" not in page
