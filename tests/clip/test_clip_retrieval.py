"""Compare ranks and recall with an oracle that sorts each row, with ties and odd tile sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from orchestrator.clip.ranks import target_ranks
from orchestrator.clip.retrieval import recall_at_k


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
