"""What the report says of clusterings and clusters, against the artifacts it is made of; and the page that shows it."""

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
from orchestrator.report.schema_clusters import ClusterSheet
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
    """Of every pair that reached a step, by part and row: its cluster, its distance, whether the step kept it."""
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
def test_a_clustering_is_told_by_its_numbers(clustered: RunRecord, report: Report, step: str) -> None:
    told, totals = report.clusterings[step], artifact(clustered, Role.TRAIN_CENTROIDS, step).totals
    clusters = [cluster for cluster, _, _ in reached(clustered, step).values() if cluster >= 0]
    sizes = np.bincount(clusters, minlength=told.k)
    filled = sizes[sizes > 0]
    assert told.k == {"semdedup": 4, "dbp": 5, "ssp": 3}[step]
    assert (told.pairs, told.empty, told.iterations) == (len(clusters), told.k - len(filled), len(totals["objective"]))
    assert (told.sizes.min, told.sizes.median, told.sizes.max) == (filled.min(), np.median(filled), filled.max())
    assert (told.objective_first, told.objective_last) == (totals["objective"][0], totals["objective"][-1])
    assert (told.sampled, told.restarts) == (totals["sampled"], totals["restarts"])


@pytest.mark.parametrize("step", ["dbp", "ssp"])
def test_clusters_are_those_that_were_pruned(clustered: RunRecord, report: Report, step: str) -> None:
    pairs, told = list(reached(clustered, step).values()), report.clusters[step]
    assert sorted(each.cluster for each in told.clusters) == sorted({cluster for cluster, _, _ in pairs})
    for each in told.clusters:
        mine = [(distance, kept) for cluster, distance, kept in pairs if cluster == each.cluster]
        assert each.size == len(mine)
        assert each.d_intra == pytest.approx(np.mean([distance for distance, _ in mine]), abs=1e-6)
        if step == "dbp":
            assert each.quota == sum(kept for _, kept in mine)
            assert each.complexity == pytest.approx(each.d_intra * (each.d_inter or 0.0))
    order = [getattr(each, told.ordered_by) for each in told.clusters]
    assert order == sorted(order)
    assert told.ordered_by == {"dbp": "complexity", "ssp": "d_intra"}[step]


def test_d_inter_is_that_of_the_quotas(clustered: RunRecord, report: Report) -> None:
    inter = dict(read_quotas(artifact(clustered, Role.QUOTAS, "dbp")).select("cluster", "inter").iter_rows())
    assert all(each.d_inter == inter[each.cluster] for each in report.clusters["dbp"].clusters)


@pytest.mark.parametrize("step", ["dbp", "ssp"])
def test_sheets_show_pairs_of_their_cluster_on_both_sides(clustered: RunRecord, report: Report, step: str) -> None:
    pairs, told = reached(clustered, step), report.clusters[step]
    sheets = [*told.densest, *told.most_spread]
    assert len(told.densest) == len(told.most_spread) > 0
    assert len({sheet.cluster.cluster for sheet in sheets}) == len(sheets)
    for sheet in sheets:
        assert sheet.num_kept == check_side(sheet, pairs, kept=True)
        check_side(sheet, pairs, kept=False)
    large = [each for each in told.clusters if each.size >= np.median([one.size for one in told.clusters]) / 2]
    assert [sheet.cluster for sheet in told.densest] == large[: len(told.densest)]
    assert [sheet.cluster for sheet in told.most_spread] == large[::-1][: len(told.most_spread)]


def check_side(sheet: ClusterSheet, pairs: dict[tuple[int, int], tuple[int, float, bool]], *, kept: bool) -> int:
    """Holds the shown pairs against all there are of the cluster and the fate; how many those are."""
    mine = {place for place, (cluster, _, fate) in pairs.items() if (cluster, fate) == (sheet.cluster.cluster, kept)}
    shown = sheet.kept if kept else sheet.pruned
    assert len(shown) == min(PAIRS_PER_ROW, len(mine))
    assert {(pair.part, pair.row) for pair in shown} <= mine
    assert [pair.score for pair in shown] == sorted(pairs[pair.part, pair.row][1] for pair in shown)
    return len(mine)


def test_a_report_made_again_is_the_same(clustered: RunRecord, report: Report) -> None:
    again = build_report(clustered)
    assert (again.clusters, again.duplicates) == (report.clusters, report.duplicates)


def test_the_page_shows_pictures_and_escapes_captions(out: Path, report: Report) -> None:
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


def test_without_pictures_the_page_shows_captions_escaped(report: Report) -> None:
    page = render(report, Thumbnails(missing="<b>gone</b>"))
    assert "<img" not in page
    assert "<b>gone" not in page
    assert all(str(escape(caption)) in page for caption in HOSTILE)
    assert "<script" not in page
