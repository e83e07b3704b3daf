"""DataComp's basic filter (arXiv 2304.14108): captions of more than 2 words and more than 5 characters, images with a
shorter side of at least 200 pixels and a ratio of the sides of at most 3, and English according to fastText.
Words are separated by blanks, characters are code points, and captions are not stripped.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

# the words of Python's str.split(): the four ASCII separators are white space there, but not in \s
_WORD = r"[^\s\x1c-\x1f]+"


class Reason(IntEnum):
    """Why a pair is dropped: the first reason that applies, in this order."""

    PASSES = 0
    CAPTION_TOO_SHORT = 1
    SIZE_UNKNOWN = 2
    IMAGE_TOO_SMALL = 3
    TOO_ELONGATED = 4
    OTHER_LANGUAGE = 5


def basic_reasons(
    captions: pl.Series,
    width: pl.Series,
    height: pl.Series,
    *,
    min_words: int = 3,
    min_chars: int = 6,
    min_side: int = 200,
    max_aspect: float = 3.0,
) -> NDArray[np.int8]:
    """A `Reason` for each pair, int8 [n]; the language is not checked here.

    Args:
        captions: String [n]; null is an empty caption.
        width, height: of the images in pixels, integers [n]. If one is null, the size is unknown and the pair is
            dropped: DataComp has no such pairs, and a filter keeps only pairs that are known to pass.
        min_words, min_chars: the smallest number that passes.
        min_side: the smallest length of the shorter side that passes.
        max_aspect: the largest ratio of the longer to the shorter side that passes.
    """
    text = captions.fill_null("")
    unknown = (width.is_null() | height.is_null()).to_numpy()
    sides = np.stack([width.fill_null(0).to_numpy(), height.fill_null(0).to_numpy()]).astype(np.float64)
    short, long = sides.min(axis=0), sides.max(axis=0)
    num_words, num_chars = text.str.count_matches(_WORD).to_numpy(), text.str.len_chars().to_numpy()
    tests = {
        Reason.CAPTION_TOO_SHORT: (num_words < min_words) | (num_chars < min_chars),
        Reason.SIZE_UNKNOWN: unknown,
        Reason.IMAGE_TOO_SMALL: short < min_side,
        # a side of length 0 has no ratio and is dropped
        Reason.TOO_ELONGATED: (short == 0) | (long / np.maximum(short, 1) > max_aspect),
    }
    return np.select(list(tests.values()), [np.int8(reason) for reason in tests], np.int8(Reason.PASSES))


def load_language_model(path: str) -> Any:
    """Load a language identification model of fastText, such as lid.176.bin.

    Raises:
        ModuleNotFoundError: fastText is not installed; it is part of the extra `language`.
    """
    try:
        import fasttext
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "filtering by language needs fastText; install it with: pip install fasttext-community"
        ) from error
    return fasttext.load_model(path)


def languages(captions: pl.Series, model: Any) -> pl.Series:
    """The most probable language of each caption, String [n] such as "en"; null counts as an empty caption.

    `model` is the result of `load_language_model`. Line ends become blanks: the model reads one line at a time.
    """
    labels, _ = model.predict(captions.fill_null("").str.replace_all("\n", " ", literal=True).to_list())
    return pl.Series("language", [label[0].removeprefix("__label__") for label in labels], dtype=pl.String)
