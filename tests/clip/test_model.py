"""Models: build by name and by config, save to a folder that open_clip loads, and load again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from orchestrator.clip import model
from orchestrator.clip.features import encode_images, encode_texts
from orchestrator.clip.model import Clip


def build(config: dict[str, Any] | None = None, name: str | None = None, **changes: Any) -> Clip:
    settings = {"pretrained": None, "image_size": None, "context_length": None, "seed": 0, **changes}
    return model.build(name=name, config=config, **settings)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_vit_b_32_builds_with_text_length_32_and_a_smaller_image() -> None:
    clip = build(name="ViT-B/32", context_length=32, image_size=96)
    assert clip.model_cfg["text_cfg"]["context_length"] == 32
    assert clip.model_cfg["vision_cfg"]["image_size"] == 96
    assert tuple(clip.preprocess_cfg["size"]) == (96, 96)
    assert clip.tokenizer(["a dog " * 60]).shape == (1, 32)
    assert clip.model.positional_embedding.shape == (32, 512)
    out = clip.model(torch.zeros(1, 3, 96, 96), clip.tokenizer(["a dog"]))
    assert out["image_features"].shape == out["text_features"].shape == (1, 512)


def test_weights_depend_only_on_the_seed_and_the_global_random_state_stays(tiny_config: dict[str, Any]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build(tiny_config, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert_same_weights(first.model, build(tiny_config, seed=3).model)
    other = build(tiny_config, seed=4)
    assert not torch.equal(first.model.token_embedding.weight, other.model.token_embedding.weight)


def test_the_config_of_the_caller_is_not_changed(timm_config: dict[str, Any]) -> None:
    before = json.dumps(timm_config)
    clip = build({**timm_config, "custom_text": True}, image_size=64, context_length=8)
    assert json.dumps(timm_config) == before
    assert clip.model_cfg["custom_text"] is True
    assert hasattr(clip.model, "text")


@pytest.mark.parametrize("kind", ["tiny", "timm", "custom_text"])
def test_open_clip_loads_a_saved_folder(
    kind: str,
    tmp_path: Path,
    tiny_config: dict[str, Any],
    timm_config: dict[str, Any],
    images: torch.Tensor,
    captions: list[str],
) -> None:
    config = {"tiny": tiny_config, "timm": timm_config, "custom_text": {**tiny_config, "custom_text": True}}[kind]
    clip = build(config, context_length=12)
    clip.model.train()
    clip.model(images.float(), clip.tokenizer(captions))  # changes the running averages of batch norm
    folder = tmp_path / "model"
    model.save(clip, folder)

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert_same_weights(clip.model, theirs)
    assert torch.equal(tokenizer(captions), clip.tokenizer(captions))
    assert tokenizer(captions).shape[1] == 12
    assert f"size={clip.preprocess_cfg['size']}" in str(preprocess)

    theirs.eval()
    with torch.no_grad():
        features = torch.nn.functional.normalize(theirs.encode_text(tokenizer(captions)), dim=1)
    torch.testing.assert_close(features, encode_texts(clip, captions, batch_size=8), rtol=1e-5, atol=1e-6)

    ours = model.load(str(folder))
    assert ours.preprocess_cfg == clip.preprocess_cfg
    assert model.load(f"local-dir:{folder}").model_cfg == ours.model_cfg == clip.model_cfg
    assert torch.equal(encode_images(ours, images, batch_size=4), encode_images(clip, images, batch_size=4))
    assert torch.equal(encode_texts(ours, captions, batch_size=4), encode_texts(clip, captions, batch_size=4))


def test_loading_a_folder_runs_none_of_its_code(tmp_path: Path, tiny_clip: Clip) -> None:
    model.save(tiny_clip, tmp_path)
    config = json.loads((tmp_path / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "any/one",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (tmp_path / model.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.load(str(tmp_path))
    with pytest.raises(ValueError, match="trust_remote_code"):
        model._tokenizer(config["model_cfg"])


def test_training_can_start_from_a_saved_folder(tmp_path: Path, tiny_clip: Clip) -> None:
    model.save(tiny_clip, tmp_path)
    again = build(name=f"local-dir:{tmp_path}", context_length=8)
    assert torch.equal(again.model.token_embedding.weight, tiny_clip.model.token_embedding.weight)
    assert again.model_cfg["text_cfg"]["context_length"] == 8
    assert again.tokenizer(["a dog"]).shape == (1, 8)


def test_a_training_checkpoint_file_of_open_clip_loads(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    trained = build(tiny_config, seed=1)
    path = tmp_path / "epoch_1.pt"
    state = {f"module.{key}": value for key, value in trained.model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, path)
    assert_same_weights(build(tiny_config, pretrained=str(path), seed=2).model, trained.model)


def test_a_named_model_loads_from_a_checkpoint_file(tmp_path: Path) -> None:
    trained = build(name="ViT-S-32-alt", seed=1)
    path = tmp_path / "weights.pt"
    torch.save(trained.model.state_dict(), path)
    assert_same_weights(model.load("ViT-S-32-alt", pretrained=str(path)).model, trained.model)


def test_a_hugging_face_tokenizer_is_saved_in_the_folder(
    tmp_path: Path, tiny_config: dict[str, Any], captions: list[str]
) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "red", "dog", "cat"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "words")
    tiny_config["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "words")
    clip = build(tiny_config)
    assert clip.tokenizer(["a red dog"])[0, :4].tolist() == [2, 3, 4, 0]

    model.save(clip, tmp_path / "model")
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    assert torch.equal(theirs(captions), clip.tokenizer(captions))


def test_a_wrong_key_or_name_gives_a_one_line_error(tiny_config: dict[str, Any], timm_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'ViT-B32': did you mean ViT-B-32"):
        build(name="ViT-B32")
    with pytest.raises(ValueError, match=r"unknown model 'zzz': valid are .*ViT-B-32"):
        build(name="zzz")
    with pytest.raises(ValueError, match="exactly one"):
        build(tiny_config, name="ViT-B-32")
    with pytest.raises(ValueError, match="has no 'text_cfg'"):
        build({"embed_dim": 8, "vision_cfg": {}})
    with pytest.raises(ValueError, match=r"vision_cfg: unknown key 'layer': did you mean layers"):
        build({**tiny_config, "vision_cfg": {"layer": 1}})
    with pytest.raises(ValueError, match=r"timm_model_name: unknown model 'resnet10q': did you mean .*resnet10t"):
        build({**timm_config, "vision_cfg": {"timm_model_name": "resnet10q"}})
    with pytest.raises(ValueError, match=r"'laion400m' is neither a file nor a tag of ViT-B-32; tags: .*laion400m_e32"):
        build(name="ViT-B-32", pretrained="laion400m")
    with pytest.raises(ValueError, match="tags: none"):
        build(tiny_config, pretrained="openai")


def test_a_reference_that_cannot_be_loaded_gives_a_one_line_error(tmp_path: Path, tiny_clip: Clip) -> None:
    with pytest.raises(ValueError, match="no such folder: /no/such/model"):
        model.load("/no/such/model")
    with pytest.raises(ValueError, match=r"no model folder at .*expected open_clip_config.json"):
        model.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"ViT-B-32 alone has no weights.*laion400m_e32"):
        model.load("ViT-B-32")
    model.save(tiny_clip, tmp_path)
    with pytest.raises(ValueError, match="which has weights: remove pretrained"):
        model.load(str(tmp_path), pretrained="openai")
    with pytest.raises(ValueError, match="is a file: give the model's open_clip name"):
        model.load(str(tmp_path / model.WEIGHTS_FILE))
    with pytest.raises(ValueError, match="does not fit the model") as raised:
        model.load("ViT-S-32-alt", pretrained=str(tmp_path / model.WEIGHTS_FILE))
    assert "\n" not in str(raised.value)
    weights = (tmp_path / model.WEIGHTS_FILE).read_bytes()
    (tmp_path / model.WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="cannot load local-dir"):
        model.load(str(tmp_path))
    (tmp_path / model.WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match="cannot load local-dir"):
        model.load(str(tmp_path))


def test_siglip_training_of_a_model_without_a_bias_starts_with_siglips_bias(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    clip = build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=None, seed=0)
    with torch.no_grad():
        clip.model.logit_scale.fill_(4.6)
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")
    sizes: dict[str, Any] = {"image_size": None, "context_length": None}
    path = str(tmp_path / "clip.pt")
    started = build(name=None, config=tiny_config, pretrained=path, seed=1, loss="siglip", **sizes)
    assert started.model.logit_bias.item() == -10
    assert started.model.logit_scale.exp().item() == pytest.approx(10)
    assert torch.equal(started.model.text_projection, clip.model.text_projection)
