"""The recipe of a phase for the devices of its workers."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.recipe import Recipe
from orchestrator.training import start
from orchestrator.training.job import recipe_of
from orchestrator.training.start import agreed_recipe, computed_as, new_model
from tests.support.pools import config_of

CPU = torch.device("cpu")
TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
RESNET = {**TOWERS, "vision_cfg": {"timm_model_name": "test_resnet", "image_size": 64}}
GPU = torch.device("cuda")
ALONE = SimpleNamespace(get_world_size=lambda: 1, get_world_rank=lambda: 0, get_local_world_size=lambda: 1)


class Warned(list[str]):
    """Stands for the signals of a phase: keeps the warnings."""

    @property
    def warn(self) -> Any:
        return SimpleNamespace(remote=self.append)


@pytest.fixture
def agreed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the recipe of one worker with `gigabytes` for tensors on its device, and the warnings."""

    def recipe(
        gigabytes: float,
        towers: dict[str, Any] = TOWERS,
        device: torch.device = CPU,
        context: Any = ALONE,
        **training: Any,
    ) -> tuple[Recipe, list[str]]:
        monkeypatch.setattr(start, "_budget", lambda *_: gigabytes * 1e9)
        settings = {"precision": "fp32", "global_batch_size": 4096, **training}
        config = config_of(
            {"format": "webdataset", "uri": "x"}, tmp_path, model={"name": None, "config": towers}, training=settings
        )
        warned = Warned()
        job: Any = SimpleNamespace(
            name="pretrain",
            config=config,
            recipe=recipe_of(config.training, config.training),
            order=SimpleNamespace(global_batch_size=config.training.global_batch_size),
            signals=warned,
        )
        clip: Clip = new_model(config)
        return agreed_recipe(job, clip, device, context), warned

    return recipe


def test_all_at_once_where_there_is_room_and_the_record_says_so(agreed: Any) -> None:
    recipe, warned = agreed(1000)
    assert recipe == Recipe(precision="fp32")
    assert computed_as(recipe) == {
        "precision": "fp32", "local_loss": False, "loss_rows": None, "accumulation": 1, "grad_checkpointing": False
    }  # fmt: skip
    assert warned == []


def test_chunks_where_memory_is_short_and_the_log_says_so(agreed: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="orchestrator"):
        recipe, warned = agreed(0.6)
    assert recipe.accumulation > 1
    assert f"pretrain: training.accumulation={recipe.accumulation}" in caplog.text
    assert warned == []


def test_what_is_set_stays_and_a_small_share_is_not_measured(agreed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agreed(0.6, accumulation=3, loss_rows=7)[0] == Recipe(precision="fp32", accumulation=3, loss_rows=7)
    monkeypatch.setattr(start, "_fit", lambda *_, **__: pytest.fail("measured"))
    assert agreed(0.0001, global_batch_size=64)[0].accumulation == 1


@pytest.mark.parametrize(
    ("num_ranks", "device", "settings", "expected"),
    [
        (2, GPU, {}, True),
        (2, GPU, {"local_loss": False}, False),
        (2, GPU, {"loss": "siglip"}, False),
        (1, GPU, {}, False),
        (2, CPU, {}, False),
        (2, CPU, {"local_loss": True}, True),
    ],
)
def test_the_loss_is_local_on_more_than_one_gpu(
    num_ranks: int,
    device: torch.device,
    settings: dict[str, Any],
    expected: bool,
    agreed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "_fit", lambda *_, **__: None)
    context = SimpleNamespace(**vars(ALONE) | {"get_world_size": lambda: num_ranks})
    assert agreed(1000, device=device, context=context, **settings)[0].local_loss == expected


def test_batch_norms_stay_in_one_chunk(agreed: Any) -> None:
    assert agreed(0.0001, RESNET)[0].accumulation == 1


def test_what_fits_in_no_way_is_a_warning(agreed: Any) -> None:
    recipe, (warning,) = agreed(0.01)
    assert recipe.grad_checkpointing
    assert "may run out of memory" in warning
    assert "training.global_batch_size" in warning
