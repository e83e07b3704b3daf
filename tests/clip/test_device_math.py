"""What a step does on a GPU, checked on a CPU: it waits for nothing, and only the towers use TensorFloat32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.clip import precision
from orchestrator.clip.model import Clip, build
from orchestrator.clip.parallel import compiled_parts
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.towers import Towers
from orchestrator.clip.train_step import Batch, TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# reading a number from a tensor: on a GPU, it waits for all that was queued before
WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero")


class _Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in WAITS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def fresh(config: dict[str, Any], loss: Any = "clip") -> Clip:
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0, loss=loss)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulation": 2, "grad_clip_norm": 1.0},
        {"loss": "siglip", "loss_rows": 3},
        {"ema_decay": 0.9, "loss_rows": 2},
        {"patch_dropout": 0.5, "grad_checkpointing": True},
        {"precision": "bf16", "local_loss": True},
    ],
)
def test_a_step_waits_for_nothing_and_its_numbers_are_read_at_once(
    settings: dict[str, Any], tiny_config: dict[str, Any], batch: Batch
) -> None:
    # tokens are trimmed on the CPU, where nothing has to be waited for
    recipe = Recipe(trim_captions=False, **settings)
    train_step = TrainStep(fresh(tiny_config, recipe.loss), recipe, device=CPU)
    keyed = replace(batch, keys=torch.arange(8))
    train_step.run(keyed, lr=1e-3, step=0)
    with _Waits() as waits:
        metrics = train_step.run(keyed, lr=1e-3, step=1)
    assert waits.names == []
    with _Waits() as waits:
        read = train_step.read(metrics)
    assert len(waits.names) <= 1
    assert read == (metrics.loss.item(), metrics.logit_scale.item(), metrics.grad_norm.item(), None)


def test_waits_are_counted() -> None:
    with _Waits() as waits:
        bool(torch.isfinite(torch.ones(())))
        torch.ones(()).item()
    assert len(waits.names) == 2


def test_tensorfloat32_is_for_towers_in_fp32_on_gpus() -> None:
    assert precision.uses_tf32(Recipe(), GPU)
    assert not precision.uses_tf32(Recipe(), CPU)
    assert not precision.uses_tf32(Recipe(tf32=False), GPU)
    assert not precision.uses_tf32(Recipe(precision="bf16"), GPU)


def test_only_the_towers_see_the_lower_precision(
    tiny_config: dict[str, Any], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TrainStep(fresh(tiny_config), Recipe(), device=CPU).run(batch, lr=0.0, step=0)
    monkeypatch.setattr(precision, "uses_tf32", lambda recipe, device: True)
    train_step = TrainStep(fresh(tiny_config), Recipe(), device=CPU)
    seen: dict[str, set[str]] = {}

    def note(place: str) -> None:
        seen.setdefault(place, set()).add(torch.get_float32_matmul_precision())

    train_step.model.visual.register_forward_hook(lambda *_: note("forward"))
    train_step.weights[0].register_hook(lambda gradient: note("scale"))
    train_step.model.visual.conv1.weight.register_hook(lambda gradient: note("backward"))
    whole = train_step.loss.forward

    def loss(images: torch.Tensor, *rest: Any) -> torch.Tensor:
        note("loss")
        images.register_hook(lambda gradient: note("loss, backward"))
        return whole(images, *rest)

    monkeypatch.setattr(train_step.loss, "forward", loss)
    found = train_step.run(batch, lr=0.0, step=0)
    seen.pop("scale", None)
    assert seen == {"forward": {"high"}, "backward": {"high"}, "loss": {"highest"}, "loss, backward": {"highest"}}
    assert torch.get_float32_matmul_precision() == "highest"
    assert found.loss.item() == expected.loss.item()
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)


RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
VIT = {"patch_size": 16, "layers": 2, "width": 32, "head_width": 16}
STAGES = [f"layer{number}" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        (RESNET, STAGES),
        ({"timm_model_name": "test_resnet"}, [f"trunk.{stage}" for stage in ("conv1", *STAGES)]),
        (VIT, ["transformer.resblocks.0", "transformer.resblocks.1"]),
    ],
)
def test_more_than_one_rank_compiles_every_image_tower(
    vision: dict[str, Any], expected: list[str], tiny_config: dict[str, Any]
) -> None:
    clip = fresh({**tiny_config, "vision_cfg": {"image_size": 32, **vision}})
    towers = Towers(clip.model, trim_captions=True)
    names = {id(module): name for name, module in towers.named_modules()}
    parts = [names[id(part)] for part in compiled_parts(towers)]
    of_images = sorted(part.removeprefix("model.visual.") for part in parts if part.startswith("model.visual."))
    assert of_images == expected
    assert sum("resblocks" in part and "visual" not in part for part in parts) == 1
