"""Preprocessing settings read without weights, compared with the loaded model and with open_clip's transform."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from orchestrator.clip import model, preprocessing
from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.data.image_decode import ImageDecoder, decode
from orchestrator.errors import UserError
from orchestrator.evaluation.image_reader import read_images
from orchestrator.evaluation.models import Models, decoder_of
from orchestrator.evaluation.samples import Sample
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.source import Shard, WebDataset
from orchestrator.training.start import build_model

# the preprocessing of open_clip's tags: CLIP, SigLIP, CLIPA
CLIP: dict[str, Any] = {}
SIGLIP = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
CLIPA = {"mean": [0.485, 0.456, 0.406], "interpolation": "bilinear", "resize_mode": "squash"}
MOBILE = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"}
EVERY = pytest.mark.parametrize("preprocess_cfg", [CLIP, SIGLIP, CLIPA, MOBILE])


def save(clip: Clip, folder: Path, preprocess_cfg: dict[str, Any]) -> Path:
    """Write a model folder with random weights and this preprocessing."""
    model.save(clip, folder)
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    (folder / model.CONFIG_FILE).write_text(json.dumps({**config, "preprocess_cfg": preprocess_cfg}))
    return folder


def jpeg(width: int, height: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 7) * np.cos(y / 5)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG")
    return out.getvalue()


def evaluated(decoder: ImageDecoder, data: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return the image as the reading tasks of the evaluation decode it, without starting tasks."""
    monkeypatch.setattr(
        "orchestrator.evaluation.image_reader.read_samples", lambda dataset, part: [Sample("a", data, 0, "", -1)]
    )
    shard = Shard(uri="a.tar", name="a.tar", num_bytes=0, version="")
    dataset = EvaluationSet(source=WebDataset((shard,)), class_names=("a",), templates=(), identity="")
    batch = next(read_images({"part": [0]}, dataset=dataset, decoder=decoder, batch_size=1))
    return batch["image"][0]


def with_open_clip(folder: Path, data: bytes) -> torch.Tensor:
    """Return the image as open_clip transforms it, float32 [3, size, size]."""
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return transform(Image.open(io.BytesIO(data)))


@EVERY
@pytest.mark.parametrize("size", [(300, 100), (90, 170)])
@pytest.mark.parametrize("scheme", ["", "local-dir:"])
def test_evaluation_images_equal_those_of_open_clips_transform(
    tiny_clip: Clip,
    tmp_path: Path,
    preprocess_cfg: dict[str, Any],
    size: tuple[int, int],
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, data = save(tiny_clip, tmp_path / "model", preprocess_cfg), jpeg(*size)
    models = Models(references={"checkpoint": f"{scheme}{folder}"})
    pixels = evaluated(models.decoder(), data, monkeypatch)
    (clip,) = models.load().values()
    # the evaluation during training, in a worker
    assert np.array_equal(evaluated(decoder_of("model", clip), data, monkeypatch), pixels)
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], torch.device("cpu"))
    ours = normalise(torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2))[0]
    # they differ by a level or two: Pillow rounds to 8 bits between its two passes, whose order depends on the crop box
    assert (ours - with_open_clip(folder, data)).abs().max() < 2.1 / 255 / min(clip.preprocess_cfg["std"])


@pytest.mark.parametrize("size", [(300, 100), (90, 170), (41, 41)])
def test_a_model_with_default_preprocessing_gets_the_evaluation_crop(
    tiny_clip: Clip, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = evaluated(decoder_of("model", tiny_clip), jpeg(*size), monkeypatch)
    assert np.array_equal(pixels, decode(jpeg(*size), size=32, crop=None, max_pixels=10**6))


def test_a_saved_model_keeps_its_preprocessing(tiny_clip: Clip, tmp_path: Path) -> None:
    clip = model.load(str(save(tiny_clip, tmp_path / "first", CLIPA)))
    model.save(clip, tmp_path / "second")
    again = Models(references={"model": str(tmp_path / "second")}).decoder()
    assert (again.resize_mode, again.interpolation) == ("squash", "bilinear")


def test_training_does_not_start_if_its_model_cannot_be_evaluated(tiny_clip: Clip, tmp_path: Path) -> None:
    folder = save(tiny_clip, tmp_path / "model", {"resize_mode": "longest"})
    config = SimpleNamespace(model=SimpleNamespace(name="ours"))
    build_model(SimpleNamespace(config=config, start_uri=str(folder), sets={}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ours takes images of 32 x 32 pixels, resized by 'longest'"):
        build_model(SimpleNamespace(config=config, start_uri=str(folder), sets={"zero_shot": 1}))  # type: ignore[arg-type]


@EVERY
def test_the_preprocessing_of_a_tag_equals_that_of_the_loaded_model(
    tiny_clip: Clip,
    tiny_config: dict[str, Any],
    tmp_path: Path,
    preprocess_cfg: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.save(tiny_clip, tmp_path)
    weights = str(tmp_path / model.WEIGHTS_FILE)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny", tiny_config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-Tiny", {"web": {"url": "none", **preprocess_cfg}})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: weights)
    for pretrained in ("web", weights):
        loaded = model.load("ViT-Tiny", pretrained=pretrained).preprocess_cfg
        settings = preprocessing.preprocess_cfg("ViT-Tiny", pretrained=pretrained)
        assert settings == {**loaded, "size": 32}
        assert model.side(loaded["size"]) == 32
    decoder = Models(references={"checkpoint": "ViT-Tiny"}, pretrained="web").decoder()
    assert decoder.resize_mode == preprocess_cfg.get("resize_mode", "shortest")


def test_published_weights_with_and_without_squashing() -> None:
    settings = preprocessing.preprocess_cfg("PE-Core-B-16", pretrained="meta")
    assert (settings["size"], settings["resize_mode"], settings["interpolation"]) == (224, "squash", "bilinear")
    settings = preprocessing.preprocess_cfg("ViT-B/32", pretrained="openai")
    assert (settings["size"], settings["resize_mode"], settings["interpolation"]) == (224, "shortest", "bicubic")


def in_hub_cache(folder: Path, cache: Path, name: str) -> None:
    """Copy a model folder into the cache of huggingface_hub."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))


def test_a_model_of_the_hub_is_evaluated(tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tiny_clip, tmp_path / "model", SIGLIP)
    in_hub_cache(folder, tmp_path / "cache", "somebody/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    models = Models(references={"checkpoint": "hf-hub:somebody/tiny"})
    assert models.image_size() == 32
    assert models.decoder() == Models(references={"checkpoint": str(folder)}).decoder()
    (clip,) = models.load().values()
    assert torch.equal(clip.model.visual.proj, tiny_clip.model.visual.proj)
    assert clip.preprocess_cfg["resize_mode"] == "squash"
    with pytest.raises(UserError, match="cannot load hf-hub:nobody/none") as raised:
        Models(references={"checkpoint": "hf-hub:nobody/none"}).decoder()
    assert "\n" not in str(raised.value)


def test_missing_settings_get_open_clips_defaults() -> None:
    settings = preprocessing.of_saved("model", {"model_cfg": {"vision_cfg": {}}})
    assert (settings["size"], settings["resize_mode"]) == (224, "shortest")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"preprocess_cfg": CLIP}, "expected model_cfg in its open_clip_config.json"),
        ({"model_cfg": {"vision_cfg": {"image_size": [224, 336]}}}, "takes images of 224 x 336 pixels"),
        ({"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"resize_mode": "longest"}}, "resized by 'longest'"),
    ],
)
def test_unusable_preprocessing_gives_a_one_line_error(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    (tmp_path / model.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        Models(references={"checkpoint": str(tmp_path)}).decoder()
    with pytest.raises(UserError, match="no model folder at"):
        Models(references={"checkpoint": f"local-dir:{tmp_path / 'nowhere'}"}).decoder()
