"""Compare class weights with open_clip's builder, and counts, ranks and recall with a stable sort of each row."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from orchestrator.clip.model import Clip
from orchestrator.clip.zero_shot import (
    OPENAI_IMAGENET_TEMPLATES,
    class_weights,
    recall_at_k,
    target_ranks,
    topk_counts,
)

NAMES = ["dog", "cat", "zebra crossing", "face with {c} braces", "keycap: 1", "sea", "dog"]


@pytest.mark.parametrize("batch_size", [3, 17, 4096])
def test_class_weights_equal_open_clips(batch_size: int, tiny_clip: Clip) -> None:
    templates = ["a photo of a {}.", "{}", "art of the {}, in {{white}}"]
    ours = class_weights(
        tiny_clip, NAMES[:3], [t.replace("{{white}}", "{white}") for t in templates], batch_size=batch_size
    )
    tiny_clip.model.eval()
    theirs = open_clip.build_zero_shot_classifier(tiny_clip.model, tiny_clip.tokenizer, NAMES[:3], templates)
    torch.testing.assert_close(ours, theirs.T, rtol=1e-5, atol=1e-6)


def test_the_default_prompts_are_those_of_openai(tiny_clip: Clip) -> None:
    assert len(OPENAI_IMAGENET_TEMPLATES) == 80
    assert "a bad photo of a {c}." in OPENAI_IMAGENET_TEMPLATES
    ours = class_weights(tiny_clip, NAMES[:2], batch_size=64)
    tiny_clip.model.eval()
    theirs = open_clip.build_zero_shot_classifier(
        tiny_clip.model, tiny_clip.tokenizer, NAMES[:2], open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    torch.testing.assert_close(ours, theirs.T, rtol=1e-5, atol=1e-6)


def test_braces_in_a_class_name_are_plain_text(tiny_clip: Clip) -> None:
    weights = class_weights(tiny_clip, NAMES, ["a {c}"], batch_size=4)
    assert weights.shape == (7, 32)
    tokens = tiny_clip.tokenizer(["a face with {c} braces"])
    tiny_clip.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(weights[3], tiny_clip.model.encode_text(tokens, normalize=True)[0])


def test_counts_add_up_and_equal_a_sort_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = F.normalize(torch.randn(9, 4, generator=generator), dim=1)
    weights[7] = weights[2]  # two classes with the same name
    features = F.normalize(torch.randn(300, 4, generator=generator), dim=1)
    labels = torch.randint(0, 8, (300,), generator=generator)  # class 8 has no image
    scores = (features.double() @ weights.double().T).float()
    order = scores.argsort(dim=1, descending=True, stable=True)
    hit1 = (order[:, 0] == labels).double()
    hit5 = (order[:, :5] == labels[:, None]).any(dim=1).double()

    counts = topk_counts(features[:113], labels[:113], weights) + topk_counts(features[113:], labels[113:], weights)
    assert counts.num_images.tolist() == [(labels == c).sum().item() for c in range(9)]
    summary = counts.summary()
    assert summary["top1"] == pytest.approx(hit1.mean().item())
    assert summary["top5"] == pytest.approx(hit5.mean().item())
    per_class = [hit1[labels == c].mean().item() for c in range(8)]
    assert summary["mean_per_class"] == pytest.approx(sum(per_class) / 8)
    assert 0 < summary["top1"] < summary["top5"] < 1


def test_top5_with_fewer_than_five_classes() -> None:
    weights = torch.eye(3)
    counts = topk_counts(torch.eye(3), torch.tensor([0, 1, 1]), weights)
    assert counts.summary() == {"top1": 2 / 3, "top5": 1.0, "mean_per_class": 0.75}


def test_wrong_input_gives_a_one_line_error(tiny_clip: Clip) -> None:
    with pytest.raises(ValueError, match="got label 3, expected 0 to 2: there are 3 class names"):
        topk_counts(torch.eye(3), torch.tensor([0, 3, 1]), torch.eye(3))
    with pytest.raises(ValueError, match="got label -1"):
        topk_counts(torch.eye(3), torch.tensor([0, -1, 1]), torch.eye(3))
    with pytest.raises(ValueError, match="no placeholder for the class name"):
        class_weights(tiny_clip, NAMES, ["a photo"], batch_size=8)
    with pytest.raises(ValueError, match="at least one each"):
        class_weights(tiny_clip, [], ["a {c}"], batch_size=8)
    empty = topk_counts(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.eye(3))
    with pytest.raises(ValueError, match="no image"):
        empty.summary()


def pairs(num: int, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    images = torch.randn(num, dim, generator=generator)
    texts = images + torch.randn(num, dim, generator=generator)
    texts[num // 2 :] = texts[: num - num // 2].clone()  # duplicate captions give ties
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def slow_ranks(queries: torch.Tensor, gallery: torch.Tensor) -> list[int]:
    ranks = []
    for target, query in enumerate(queries.double().numpy()):
        scores = np.array([np.float32(row @ query) for row in gallery.double().numpy()])
        ranks.append(int(np.argsort(-scores, kind="stable").tolist().index(target)))
    return ranks


@pytest.mark.parametrize("tile_rows", [1, 7, 64, 4096])
def test_ranks_equal_those_of_a_stable_sort(tile_rows: int) -> None:
    images, texts = pairs(101)
    own = torch.arange(101)
    assert target_ranks(images, texts, own, tile_rows=tile_rows).tolist() == slow_ranks(images, texts)
    assert target_ranks(texts, images, own, tile_rows=tile_rows).tolist() == slow_ranks(texts, images)


@pytest.mark.parametrize("tile_rows", [1, 64, 4096])
@pytest.mark.parametrize("num_same", [2, 300])
def test_ranks_by_float32_first_equal_those_by_float64(tile_rows: int, num_same: int) -> None:
    images, texts = pairs(301, dim=64)
    # the same texts, and texts that differ in the last bits: float32 does not order them
    texts[:num_same] = texts[0]
    texts[num_same // 2 : num_same] += 1e-8 * torch.randn(num_same - num_same // 2, 64)
    own = torch.arange(301)
    for queries, gallery in ((images, texts), (texts, images)):
        found = target_ranks(queries, gallery, own, tile_rows=tile_rows, float32_first=True)
        assert torch.equal(found, target_ranks(queries, gallery, own, tile_rows=64, float32_first=False))


def test_recall_counts_the_ranks_in_both_directions() -> None:
    images, texts = pairs(60)
    recall = recall_at_k(images, texts, ks=(1, 10))
    forward, backward = np.array(slow_ranks(images, texts)), np.array(slow_ranks(texts, images))
    assert recall == {
        "image_to_text_recall_at_1": np.mean(forward < 1),
        "image_to_text_recall_at_10": np.mean(forward < 10),
        "text_to_image_recall_at_1": np.mean(backward < 1),
        "text_to_image_recall_at_10": np.mean(backward < 10),
    }
    assert 0 < recall["image_to_text_recall_at_1"] < recall["image_to_text_recall_at_10"] < 1


def test_a_model_that_scores_all_pairs_alike_is_at_chance() -> None:
    same = F.normalize(torch.ones(50, 8), dim=1)
    recall = recall_at_k(same, same)
    assert recall["image_to_text_recall_at_1"] == recall["text_to_image_recall_at_1"] == 1 / 50
    assert recall["image_to_text_recall_at_10"] == 10 / 50


def test_nan_features_and_wrong_numbers_of_pairs_are_errors() -> None:
    images, texts = pairs(10)
    images[3, 0] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        recall_at_k(images, texts)
    with pytest.raises(ValueError, match="got 9 images and 10 texts"):
        recall_at_k(images[:9], texts)
    with pytest.raises(ValueError, match="at least one"):
        recall_at_k(images[:0], texts[:0])
