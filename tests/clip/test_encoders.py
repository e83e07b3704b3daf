"""Encoders by name: weights, pixels, unit vectors, and one-line errors."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import polars as pl
import pytest
import timm
import torch
from PIL import Image

from orchestrator.clip.encoders import LITE0, Encoder, efficientnet_lite0, open_clip_encoder, timm_encoder
from orchestrator.clip.model import Clip, save
from orchestrator.data.image_decode import decode, evaluation_crop

DEMO_TABLE = Path(__file__).parents[2] / "orchestrator" / "demo" / "pool" / "train.parquet"
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def lite0() -> Encoder:
    return efficientnet_lite0(image_size=224).place(CPU, "fp32")


@pytest.fixture
def timm_file(tmp_path: Path) -> Path:
    """A checkpoint of timm's smallest ViT with a head and random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def pixels_of(encoder: Encoder, pictures: list[bytes]) -> torch.Tensor:
    size, fraction = encoder.image_input.size, encoder.image_input.crop_fraction
    crop = partial(evaluation_crop, size=size, fraction=fraction)
    decoded = [decode(data, size=size, crop=crop, max_pixels=10**8) for data in pictures]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def test_lite0_finds_the_same_emoji_in_another_style(lite0: Encoder) -> None:
    table = pl.read_parquet(DEMO_TABLE).with_columns(name=pl.col("key").str.replace("^[a-z]+-", ""))
    noto, twemoji = (table.filter(pl.col("source") == style) for style in ("noto", "twemoji"))
    both = noto.join(twemoji, on="name").sort("name").gather_every(35)
    images, others = (lite0.encode_images(pixels_of(lite0, both[name].to_list())) for name in ("image", "image_right"))
    found = (images @ others.T).argmax(1) == torch.arange(len(both))
    assert len(both) >= 40
    assert found.float().mean() > 0.5, "chance is one in the number of emoji"


def test_lite0_equals_timms_network_without_the_head(lite0: Encoder) -> None:
    assert lite0.dims == {"image": 1280}
    assert (lite0.image_input.size, lite0.image_input.crop_fraction) == (224, 0.875)
    tower = timm.create_model(LITE0, num_classes=0)
    tower.load_state_dict(lite0.clip.model.visual.state_dict())
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        features = tower.eval()((images / 255 - 0.5) / 0.5)
    expected = torch.nn.functional.normalize(features)
    torch.testing.assert_close(lite0.encode_images(images), expected, atol=1e-5, rtol=1e-4)


def test_the_pixels_equal_those_of_timms_transform(lite0: Encoder) -> None:
    picture = pl.read_parquet(DEMO_TABLE, n_rows=1)["image"][0]
    config = timm.data.resolve_model_data_config(lite0.clip.model.visual)
    transform = timm.data.create_transform(**config)
    theirs = transform(Image.open(io.BytesIO(picture)).convert("RGB"))
    ours = (pixels_of(lite0, [picture])[0] / 255 - 0.5) / 0.5
    assert (ours - theirs).abs().mean() < 0.01


def test_a_timm_checkpoint_loads_without_its_head(timm_file: Path) -> None:
    encoder = timm_encoder(name="test_vit", checkpoint=str(timm_file), image_size=None).place(CPU, "fp32")
    whole = timm.create_model("test_vit").eval()
    whole.load_state_dict(torch.load(timm_file, weights_only=True))
    size, config = encoder.image_input.size, whole.pretrained_cfg
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        features = whole.forward_head(whole.forward_features((images / 255 - mean) / std), pre_logits=True)
    expected = torch.nn.functional.normalize(features)
    torch.testing.assert_close(encoder.encode_images(images), expected, atol=1e-5, rtol=1e-4)
    assert encoder.dims == {"image": features.shape[1]}


def test_a_vision_transformer_runs_at_another_image_size(timm_file: Path) -> None:
    encoder = timm_encoder(name="test_vit", checkpoint=str(timm_file), image_size=96).place(CPU, "fp32")
    assert encoder.image_input.size == 96
    vectors = encoder.encode_images(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    assert vectors.shape == (1, encoder.dims["image"])


@pytest.fixture
def clip_folder(tiny_clip: Clip, tmp_path: Path) -> str:
    save(tiny_clip, tmp_path / "clip")
    return str(tmp_path / "clip")


def test_the_towers_of_an_open_clip_folder_equal_the_model(
    clip_folder: str, images: torch.Tensor, captions: list[str]
) -> None:
    encoder = open_clip_encoder(name=clip_folder, pretrained=None, towers=("image", "text")).place(CPU, "fp32")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    mean, std = (torch.tensor(theirs.visual.preprocess_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    theirs.eval()
    with torch.inference_mode():
        image = theirs.encode_image((images / 255 - mean) / std, normalize=True)
        text = theirs.encode_text(tokenizer(captions), normalize=True)
    torch.testing.assert_close(encoder.encode_images(images), image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_texts(captions), text, atol=1e-5, rtol=1e-4)
    assert encoder.dims == {"image": 32, "text": 32}


def test_bf16_is_close_and_of_unit_norm(clip_folder: str, images: torch.Tensor) -> None:
    whole = open_clip_encoder(name=clip_folder, pretrained=None, towers=("image",)).place(CPU, "fp32")
    half = open_clip_encoder(name=clip_folder, pretrained=None, towers=("image",)).place(CPU, "bf16")
    vectors = half.encode_images(images)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(images)), atol=1e-5, rtol=0)
    assert not torch.equal(vectors, whole.encode_images(images))
    assert ((vectors * whole.encode_images(images)).sum(1) > 0.999).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "test_vitt"}, "unknown timm model 'test_vitt': did you mean test_vit"),
        ({"name": "test_vit", "checkpoint": "nowhere.pth"}, "no such checkpoint: nowhere.pth"),
        ({"name": "test_vit", "checkpoint": "notes.pth"}, "cannot be read as weights"),
        ({"name": "test_resnet", "checkpoint": "weights.pth"}, "does not fit test_resnet"),
        ({"name": "test_vit.no_such_tag", "checkpoint": None}, "cannot load timm model 'test_vit.no_such_tag'"),
    ],
)
def test_wrong_settings_give_one_line_errors(
    arguments: dict[str, Any], message: str, timm_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(timm_file.parent)
    Path("notes.pth").write_text("no weights")
    with pytest.raises(ValueError, match=message) as error:
        timm_encoder(**{"checkpoint": "weights.pth", "image_size": None, **arguments})
    assert "\n" not in str(error.value)


def test_fp16_needs_a_gpu(clip_folder: str) -> None:
    encoder = open_clip_encoder(name=clip_folder, pretrained=None, towers=("image",))
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        encoder.place(CPU, "fp16")
