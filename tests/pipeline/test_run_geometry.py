"""Whole runs, typed, whose pruning goes by embeddings: of an encoder, and then of the very model that came out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from orchestrator import Run
from orchestrator.errors import UserError
from tests.support.commands import Shell, tiny_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(geometry_run: Path) -> Path:
    return geometry_run


def report_of(folder: Path, out: str) -> dict[str, Any]:
    return json.loads((folder / out / "report.json").read_text())


def test_each_step_gets_the_pairs_that_the_previous_one_kept(folder: Path) -> None:
    report = report_of(folder, "GEO")
    funnel = {row["name"]: row["pairs"] for row in report["funnel"]}
    assert funnel["pool"] == 96
    assert funnel["dbp"] == funnel["pretrain"] == int(funnel["semdedup"] * 0.8)
    assert funnel["finetune"] == funnel["semdedup"] < 96
    assert report["training"]["pretrain"]["samples_seen"] == 80
    assert report["training"]["pretrain"]["epochs"] == pytest.approx(80 / funnel["dbp"], abs=1e-3)


def test_pairs_have_cluster_and_distance_columns(folder: Path) -> None:
    pairs = Run(folder / "GEO").pairs.collect()
    assert pairs["kept"].sum() == report_of(folder, "GEO")["training"]["pretrain"]["pairs"]
    for step, reached in (("semdedup", "after_pool"), ("dbp", "after_semdedup")):
        assert (pairs[f"cluster_{step}"].is_not_null() == pairs[reached]).all()
        assert (pairs[f"distance_{step}"].is_not_null() == pairs[reached]).all()


def test_clusters_of_each_step_can_be_read(folder: Path) -> None:
    run = Run(folder / "GEO")
    pairs, quotas = run.pairs.collect(), run.clusters("dbp")
    reached = pairs.filter("after_semdedup")
    counted = reached.group_by(pl.col("cluster_dbp").alias("cluster")).agg(
        pl.len().alias("size"), pl.col("kept").sum(), pl.col("distance_dbp").mean().alias("d_intra")
    )
    found = quotas.join(counted, on="cluster", how="full", suffix="_counted").sort("cluster")
    assert found["size"].to_list() == found["size_counted"].to_list()
    assert found["quota"].to_list() == found["kept"].to_list()
    assert found["d_intra"].to_numpy() == pytest.approx(found["d_intra_counted"].to_numpy(), abs=1e-3)
    assert found["complexity"].to_numpy() == pytest.approx((found["d_intra"] * found["d_inter"]).to_numpy())
    centroids = run.centroids("dbp")
    assert centroids.shape[0] == 5
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert "d_inter" not in run.clusters("semdedup").columns, "it has no budget to share out"
    for asked in (run.clusters, run.centroids):
        with pytest.raises(UserError, match="has no clusters of 'ssp'; it has those of: semdedup, dbp"):
            asked("ssp")


def test_images_come_in_the_requested_order(folder: Path, tar_pool: str) -> None:
    run = Run(folder / "GEO")
    asked = run.pairs.collect().sample(7, seed=1, shuffle=True)
    pictures = run.images(asked)
    for key, picture in zip(asked["key"], pictures, strict=True):
        with tarfile.open(next(Path(tar_pool).glob(f"{int(key) // 32:05d}.tar"))) as tar:
            member = tar.extractfile(f"{key}.jpg")
            assert member is not None
            assert picture == Image.open(member).convert("RGB")


def test_a_trained_model_can_score_the_pairs(folder: Path, run_command: Shell, tiny_conf: str, tar_pool: str) -> None:
    embedding = f"embedding.clip.model={folder}/GEO/model embedding.clip.pretrained=null"
    step = "selection.steps=[clip_score] selection.clip_score.keep_fraction=0.25"
    done = run_command(
        f"python -m orchestrator select {tiny_conf} source.uri={tar_pool} {embedding} {step} out=SCORED store=STORE",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert report_of(folder, "SCORED")["steps"][0]["pairs_out"] == 24


def test_an_unknown_step_in_finetune_after_is_an_error(
    folder: Path, run_command: Shell, tiny_conf: str, tar_pool: str
) -> None:
    done = run_command(f"{tiny_command(tiny_conf, tar_pool)} finetune.after=semdedup out=X store=STORE", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip() == "orchestrator: finetune.after=semdedup: no such step; this run's steps: pool, wfpp"
