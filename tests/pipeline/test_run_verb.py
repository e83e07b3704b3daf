"""A whole run, typed: pruned, trained by two workers, fine-tuned, evaluated, reported; and the same once more."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from tests.support.commands import Shell, tiny_command

pytestmark = pytest.mark.slow
NUM_PAIRS, KEPT, BATCH, EPOCHS = 96, 72, 16, 2
STEPS = EPOCHS * KEPT // BATCH


@pytest.fixture
def report(tiny_run: Path) -> dict[str, Any]:
    return json.loads((tiny_run / "OUT" / "report.json").read_text())


def phase_folder(folder: Path, phase: str) -> Path:
    # the store may hold phases of other runs too
    (found,) = RunRecord.read(str(folder / "OUT")).with_role(Role(phase))
    return Path(found.uri)


def test_the_report_counts_every_stage(report: dict[str, Any]) -> None:
    assert {row["name"]: row["pairs"] for row in report["funnel"]} | {
        "wfpp": KEPT,
        "pretrain": KEPT,
        "finetune": NUM_PAIRS,
    } == {row["name"]: row["pairs"] for row in report["funnel"]}
    (step,) = report["steps"]
    assert (step["pairs_in"], step["budget"], step["pairs_out"]) == (NUM_PAIRS, KEPT, KEPT)
    assert report["skipped"]["catalog"]["problems"] == {}
    assert {name: phase["skipped"] for name, phase in report["skipped"]["training"].items()} == {
        "pretrain": 0,
        "finetune": 0,
    }


def test_samples_seen_are_counted_and_compared(report: dict[str, Any]) -> None:
    pretrain, finetune, cost = report["training"]["pretrain"], report["training"]["finetune"], report["cost"]
    assert (pretrain["samples_seen"], pretrain["steps"], pretrain["num_workers"]) == (EPOCHS * KEPT, STEPS, 2)
    assert (finetune["samples_seen"], finetune["steps"]) == (NUM_PAIRS, NUM_PAIRS // BATCH)
    assert cost["samples_seen"] == EPOCHS * KEPT + NUM_PAIRS
    assert cost["full_samples"] == EPOCHS * NUM_PAIRS
    assert cost["samples_fraction"] == pytest.approx(cost["samples_seen"] / cost["full_samples"])


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_the_curve_has_every_step_once(tiny_run: Path, report: dict[str, Any], phase: str) -> None:
    lines = [json.loads(line) for line in (phase_folder(tiny_run, phase) / "metrics.jsonl").read_text().splitlines()]
    steps = report["training"][phase]["steps"]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert [line["samples_seen"] for line in lines] == [BATCH * step for step in range(1, steps + 1)]
    assert [point["step"] for point in report["training"][phase]["curve"]] == list(range(1, steps + 1))
    assert lines[-1]["lr"] < max(line["lr"] for line in lines)
    assert list((phase_folder(tiny_run, phase) / "tensorboard").iterdir())


def test_files_are_readable_for_other_users(tiny_run: Path) -> None:
    # some writers, and whoever renames a temporary file, leave it to its owner alone
    made = [path for place in ("OUT", "STORE") for path in (tiny_run / place).rglob("*")]
    assert [path for path in made if not path.stat().st_mode & 0o040] == []


def test_open_clip_loads_the_model_folder(tiny_run: Path) -> None:
    reference = f"local-dir:{tiny_run / 'OUT' / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(reference)
    tokenizer = open_clip.get_tokenizer(reference)
    model.eval()
    with torch.no_grad():
        texts = model.encode_text(tokenizer(["a red square", "a blue stripe"]))
        images = model.encode_image(preprocess(Image.new("RGB", (50, 40), "red")).unsqueeze(0))
    assert texts.shape == (2, 16)
    assert images.shape == (1, 16)
    assert tokenizer(["x"]).shape == (1, 12)


def test_the_model_is_the_fine_tuned_one_and_training_moved_it(tiny_run: Path) -> None:
    weights = {
        phase: (phase_folder(tiny_run, phase) / "model" / "open_clip_model.safetensors").read_bytes()
        for phase in ("pretrain", "finetune")
    }
    assert (tiny_run / "OUT" / "model" / "open_clip_model.safetensors").read_bytes() == weights["finetune"]
    assert weights["pretrain"] != weights["finetune"]


def test_both_models_were_evaluated(report: dict[str, Any]) -> None:
    assert set(report["evaluation"]) == {"pretrain", "finetune"}
    for result in report["evaluation"].values():
        assert (result["zero_shot"]["num_classes"], result["zero_shot"]["num_images"]) == (8, 16)
        assert 0 <= result["zero_shot"]["top1"] <= result["zero_shot"]["top5"] <= 1


def test_plain_output_shows_plan_progress_and_locations(tiny_run: Path) -> None:
    said = (tiny_run / "stdout.txt").read_text()
    for part in (
        "plan of tiny",
        "to compute",
        "pretrain: done",
        "finetune: done",
        "evaluate: done",
        "report.html",
        "model",
    ):
        assert part in said
    assert "\x1b" not in said
    assert "samples seen: " in said


def test_the_report_records_versions_config_and_fingerprints(report: dict[str, Any]) -> None:
    assert {"torch", "ray", "open_clip_torch"} <= set(report["versions"])
    assert report["config"]["training"]["global_batch_size"] == BATCH
    assert all(stage["seconds"] >= 0 and not stage["reused"] for stage in report["stages"])
    assert {"catalog", "wfpp", "pretrain", "finetune"} <= set(report["fingerprints"])


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_recomputes_nothing(run_command: Shell, tiny_run: Path, tiny_conf: str, tar_pool: str) -> None:
    before = snapshot(tiny_run / "STORE")
    done = run_command(f"{tiny_command(tiny_conf, tar_pool)} out=AGAIN store=STORE", cwd=tiny_run)
    assert done.returncode == 0, done.stderr
    assert snapshot(tiny_run / "STORE") == before
    assert "to compute" not in done.stdout
    report = json.loads((tiny_run / "AGAIN" / "report.json").read_text())
    assert all(stage["reused"] for stage in report["stages"])
    assert (tiny_run / "AGAIN" / "model" / "open_clip_model.safetensors").exists()


def test_a_plan_shows_complete_stages(run_command: Shell, tiny_run: Path, tiny_conf: str, tar_pool: str) -> None:
    command = tiny_command(tiny_conf, tar_pool).replace(" run ", " plan ")
    done = run_command(f"{command} store=STORE selection.wfpp.keep_fraction=0.5 plan.probe_parts=1", cwd=tiny_run)
    plan, costs = done.stdout.split("estimated cost of the remaining stages")
    rows = {
        cells[1].strip(): cells[3].strip()
        for cells in (line.split("│") for line in plan.splitlines())
        if len(cells) == 7
    }
    assert {name: rows[name] for name in ("catalog", "score, wfpp", "wfpp", "pretrain")} == {
        "catalog": "reused",
        "score, wfpp": "reused",
        "wfpp": "to compute",
        "pretrain": "to compute",
    }
    priced = [line.split("│")[1].strip() for line in costs.splitlines() if line.startswith("│")]
    assert not {"catalog", "score, wfpp"} & set(priced)
    assert {"wfpp", "pretrain", "finetune", "total"} <= set(priced)


def test_the_report_is_rebuilt(run_command: Shell, tiny_run: Path) -> None:
    copy = tiny_run / "COPY"
    shutil.copytree(tiny_run / "OUT", copy)
    for name in ("report.json", "report.html"):
        (copy / name).unlink()
    done = run_command("python -m orchestrator report run=COPY", cwd=tiny_run)
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "report.json").read_text()) == json.loads((tiny_run / "OUT" / "report.json").read_text())
    assert os.path.getsize(copy / "report.html") > 10_000
