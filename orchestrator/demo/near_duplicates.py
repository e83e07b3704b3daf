"""Find pairs without a near-duplicate, in image and in caption. Only these pairs can go into the retrieval set.

Images are compared as 16 x 16 colour thumbnails, by cosine. The mean thumbnail of the pool is subtracted first, because
all images have a white background and would look alike otherwise. A cosine of 0.9 or more marks recoloured, moved and
retouched copies, and a few images that are alike by chance. Captions are compared as sets of words, by the Jaccard
index |A & B| / |A | B|."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from orchestrator.pruning.exact import rounding, row_products

THUMBNAIL_SIDE = 16
MAX_PICTURE_COSINE = 0.9
MAX_CAPTION_JACCARD = 0.6
ROWS_PER_TILE = 1024


def lone_pairs(images: Sequence[bytes], captions: Sequence[str], families: Sequence[str]) -> np.ndarray:
    """Mark the pairs without a near-duplicate in another family.

    Args:
        images: Encoded images [n].
        captions: Captions [n].
        families: Names [n]. Pairs of one family may be alike (the same emoji in two styles).

    Returns:
        bool [n], true for pairs without a near-duplicate."""
    pictures = _thumbnails(images)
    words, num_words = _word_incidence(captions)
    family = np.unique(np.asarray(families), return_inverse=True)[1]
    lone = np.ones(len(images), dtype=bool)
    for start in range(0, len(images), ROWS_PER_TILE):
        tile = slice(start, start + ROWS_PER_TILE)
        shared = words[tile] @ words.T
        union = num_words[tile, None] + num_words[None, :] - shared
        alike = _alike(pictures, tile) | (shared >= MAX_CAPTION_JACCARD * union)
        lone[tile] = ~(alike & (family[tile, None] != family[None, :])).any(axis=1)
    return lone


def _alike(pictures: np.ndarray, tile: slice) -> np.ndarray:
    """Compare a tile of the thumbnails with all of them, bool [tile, n]. No pair depends on the size of the tile."""
    cosines = pictures[tile] @ pictures.T
    alike = cosines >= MAX_PICTURE_COSINE
    # a product of matrices rounds by its shape, so pairs that are so close to the threshold are computed again
    margin = rounding(pictures.shape[1], np.float32)
    row, column = np.nonzero(np.abs(cosines - MAX_PICTURE_COSINE) <= margin)
    alike[row, column] = row_products(pictures[tile][row], pictures[column]) >= MAX_PICTURE_COSINE
    return alike


def _thumbnails(images: Sequence[bytes]) -> np.ndarray:
    """Return unit-norm thumbnails, float32 [n, side * side * 3]."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    decoded = (Image.open(io.BytesIO(image)).convert("RGB") for image in images)
    pixels = np.stack([np.asarray(image.resize(side, Image.Resampling.BOX)) for image in decoded])
    flat = pixels.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=0)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _word_incidence(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a word matrix of zeros and ones, float32 [n, vocabulary], and its row sums [n]."""
    word_sets = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    column = {word: j for j, word in enumerate(sorted(set().union(*word_sets)))}
    incidence = np.zeros((len(captions), len(column)), dtype=np.float32)
    for row, words in enumerate(word_sets):
        incidence[row, [column[word] for word in words]] = 1
    return incidence, incidence.sum(axis=1)
