"""Options of training in whole runs: evaluation during training, the best model, and many options at once.

Settings that exclude each other are an error before anything is computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import pytest
from safetensors.torch import load_file

from orchestrator.config import ConfigError
from orchestrator.errors import UserError
from orchestrator.training.stage import check_evaluation
from tests.support.commands import Shell, tiny_command
from tests.support.pools import config_of, write_zero_shot

ZERO_SHOT = {"evaluation": {"zero_shot": {"uri": "zs.tar"}, "retrieval": {"uri": "pairs.tar"}}}
SOURCE = {"format": "webdataset", "uri": "pool"}


FSDP = (
    "training.num_workers=2 training.parallel=fsdp training.accumulation=2 training.ema_decay=0.9 "
    "training.patch_dropout=0.5 "
    "training.grad_checkpointing=true training.grad_clip_norm=1.0 training.lr_schedule=constant "
    "training.decode_in=workers"
)
SIGLIP = (
    "training.num_workers=2 training.loss=siglip training.precision=bf16 training.local_loss=false "
    "training.lock_text=true training.lr_restarts=1 training.trim_captions=false"
)


def check_model(folder: Path, phase: Path) -> None:
    """Check that open_clip loads the run's model, with the shapes of the phase's weights."""
    weights = load_file(phase / "model" / "open_clip_model.safetensors")
    model = open_clip.create_model(f"local-dir:{folder / 'OUT' / 'model'}")
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


@pytest.mark.slow
def test_siglip_keeps_the_best_model_of_the_evaluations(
    run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    write_zero_shot(tmp_path)
    done = run_command(
        f"{tiny_command(tiny_conf, tar_pool)} out=OUT store=STORE finetune.enabled=false training.epochs=6 "
        "training.log_every_steps=100 training.evaluate_every_steps=5 training.keep_model=best "
        f"training.best_metric=zero_shot/top1 {SIGLIP}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (phase,) = (tmp_path / "STORE" / "pretrain").iterdir()
    curve = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in curve] == [5, 10, 15, 20, 25, 27]
    assert all(math.isfinite(record["loss"]) for record in curve)
    check_model(tmp_path, phase)
    best = max(curve, key=lambda record: record["zero_shot/top1"])
    noted = json.loads((phase / "best.json").read_text())
    assert noted == {"step": best["step"], "metric": "zero_shot/top1", "value": best["zero_shot/top1"]}
    report = json.loads((tmp_path / "OUT" / "report.json").read_text())
    # the run's model is the best one: its own evaluation gives the same value
    assert report["evaluation"]["pretrain"]["zero_shot"]["top1"] == pytest.approx(noted["value"])
    assert not (phase / "best").exists(), "it has become the phase's model"


@pytest.mark.slow
@pytest.mark.long
def test_fsdp_works_with_all_options_that_save_memory(
    run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    write_zero_shot(tmp_path)
    done = run_command(f"{tiny_command(tiny_conf, tar_pool)} out=OUT store=STORE {FSDP}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (phase,) = (tmp_path / "STORE" / "pretrain").iterdir()
    curve = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    assert len(curve) == 9
    assert all(math.isfinite(record["loss"]) for record in curve)
    check_model(tmp_path, phase)
    assert list((phase / "checkpoints").glob("*")) == [] if (phase / "checkpoints").exists() else True


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"keep_model": "best"}, "keep_model=best needs training.evaluate_every_steps"),
        ({"lr_schedule": "constant", "lr_restarts": 2}, "lr_restarts=2 needs lr_schedule=cosine, got constant"),
        ({"cooldown_epochs": 2.0}, "go together, got cosine and 2"),
        ({"lr_schedule": "constant-cooldown"}, "go together, got constant-cooldown and 0"),
        ({"patch_dropout": 1.0}, "patch_dropout"),
        ({"lock_image_unlocked_groups": 1}, "lock_image_unlocked_groups needs training.lock_image=true"),
        ({"loss": "siglip", "local_loss": True}, "local_loss=true needs training.loss=clip"),
    ],
)
def test_settings_that_exclude_each_other_are_an_error(
    training: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(SOURCE, tmp_path, training=training)


def test_the_metric_of_the_best_model_must_be_measured(tmp_path: Path) -> None:
    best = {"evaluate_every_steps": 10, "keep_model": "best", "best_metric": "zero_shot/top_1"}
    with pytest.raises(
        UserError, match=r"best_metric=zero_shot/top_1: expected one of zero_shot/top1, zero_shot/top5, "
    ):
        check_evaluation(config_of(SOURCE, tmp_path, training=best, **ZERO_SHOT))
    check_evaluation(config_of(SOURCE, tmp_path, training=best | {"best_metric": "zero_shot/top5"}, **ZERO_SHOT))
    with pytest.raises(UserError, match="evaluate_every_steps is set, but there is no evaluation set"):
        check_evaluation(config_of(SOURCE, tmp_path, training=best))
