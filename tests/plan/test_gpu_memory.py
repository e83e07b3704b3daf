"""`plan.gpu` shows how a training step fits into a type of GPU."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from orchestrator.config import ConfigError
from orchestrator.config.section import GpuName
from orchestrator.engine.console import Display
from orchestrator.plan import gpu_memory
from tests.support.pools import config_of

TOWERS = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 256, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 2},
}
WITH_BATCH_NORMS = {**TOWERS, "vision_cfg": {"timm_model_name": "test_resnet", "image_size": 64}}


def shown(tmp_path: Path, gpu: str | None, towers: dict[str, Any] = TOWERS, **training: Any) -> str:
    model = {"name": None, "config": towers}
    source = {"format": "webdataset", "uri": "x"}
    config = config_of(source, tmp_path, model=model, training=training, plan={"gpu": gpu})
    out = StringIO()
    gpu_memory.show_memory(config, Display(Console(file=out, width=1000)))
    return out.getvalue()


def test_every_type_has_its_memory() -> None:
    assert set(gpu_memory.GPUS) == set(get_args(GpuName))


def test_a_small_gpu_needs_chunks_and_a_large_one_does_not(tmp_path: Path) -> None:
    small = shown(tmp_path, "t4", global_batch_size=65536, num_workers=4)
    assert "training on 4 GPUs t4 (14.6 GiB) with 16,384 pairs per worker and batch" in small
    assert "training.accumulation=1:" not in small
    large = shown(tmp_path, "b200", global_batch_size=8192, num_workers=4)
    assert "training.accumulation=1: about" in large


def test_what_is_set_is_shown_with_its_memory(tmp_path: Path) -> None:
    found = shown(tmp_path, "t4", global_batch_size=65536, num_workers=4, accumulation=2)
    assert "training.accumulation=2" in found


def test_batch_norms_are_named_as_the_reason(tmp_path: Path) -> None:
    found = shown(tmp_path, "l4", WITH_BATCH_NORMS, global_batch_size=1024)
    assert "batch norms" in found
    assert "training.accumulation=1" in found


def test_nothing_is_shown_without_a_type_and_an_unknown_type_is_an_error(tmp_path: Path) -> None:
    assert shown(tmp_path, None) == ""
    with pytest.raises(ConfigError, match=r"plan.gpu: got 'h9000', expected .*'h100'"):
        shown(tmp_path, "h9000")
