"""Whole runs, typed, whose pruning goes by embeddings: of an encoder, and then of the very model that came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Shell, tiny_command

from orchestrator import Run

pytestmark = pytest.mark.slow
STEPS = (
    "selection.steps=[semdedup,dbp] selection.semdedup.embedding=lite selection.dbp.embedding=lite "
    "embedding.lite.image_size=32 selection.semdedup.clustering.k=4 selection.semdedup.eps=0.05 "
    "selection.dbp.clustering.k=5 selection.dbp.keep_fraction=0.8 selection.dbp.num_neighbours=2"
)


@pytest.fixture(scope="module")
def folder(typed: Shell, tiny_conf: str, tar_pool: str, tiny_run: Path) -> Path:
    """The folder of `tiny_run`, with a run `GEO` beside its own: deduplicated, pruned by DBP, fine-tuned on the
    deduplicated pool."""
    command = (
        f"{tiny_command(tiny_conf, tar_pool)} {STEPS} finetune.after=semdedup training.samples=80 out=GEO store=STORE"
    )
    done = typed(command, cwd=tiny_run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a run that goes well says nothing there"
    return tiny_run


def report_of(folder: Path, out: str) -> dict[str, Any]:
    return json.loads((folder / out / "report.json").read_text())


def test_each_step_sees_what_the_one_before_left(folder: Path) -> None:
    report = report_of(folder, "GEO")
    funnel = {row["name"]: row["pairs"] for row in report["funnel"]}
    assert funnel["pool"] == 96
    assert funnel["dbp"] == funnel["pretrain"] == int(funnel["semdedup"] * 0.8)
    assert funnel["finetune"] == funnel["semdedup"] < 96
    assert report["training"]["pretrain"]["samples_seen"] == 80
    assert report["training"]["pretrain"]["epochs"] == pytest.approx(80 / funnel["dbp"], abs=1e-3)


def test_its_pairs_have_their_clusters(folder: Path) -> None:
    pairs = Run(folder / "GEO").pairs.collect()
    assert pairs["kept"].sum() == report_of(folder, "GEO")["training"]["pretrain"]["pairs"]
    for step, reached in (("semdedup", "after_pool"), ("dbp", "after_semdedup")):
        assert (pairs[f"cluster_{step}"].is_not_null() == pairs[reached]).all()
        assert (pairs[f"distance_{step}"].is_not_null() == pairs[reached]).all()


def test_a_model_of_ours_scores_the_pairs(folder: Path, typed: Shell, tiny_conf: str, tar_pool: str) -> None:
    embedding = f"embedding.clip.model={folder}/GEO/model embedding.clip.pretrained=null"
    step = "selection.steps=[clip_score] selection.clip_score.keep_fraction=0.25"
    done = typed(
        f"python -m orchestrator select {tiny_conf} source.uri={tar_pool} {embedding} {step} out=SCORED store=STORE",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert report_of(folder, "SCORED")["steps"][0]["pairs_out"] == 24


def test_an_unknown_step_to_fine_tune_after_is_named(folder: Path, typed: Shell, tiny_conf: str, tar_pool: str) -> None:
    done = typed(f"{tiny_command(tiny_conf, tar_pool)} finetune.after=semdedup out=X store=STORE", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip() == "orchestrator: finetune.after=semdedup: no such step; this run's steps: pool, wfpp"
