"""Compare the basic filter with its definition in plain Python. The language model is trained in the test."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.pruning.filters import Reason, basic_reasons, languages, load_language_model

ODD = [
    None,
    "",
    "  a  b ",
    "a\u00a0b\u2003c d",
    "a\x1cb\x1dc\x1ed\x1fe",
    "a\x85b c",
    "日本 の 夜",
    "a b c",
    "a b cd",
    "\n\t",
]


def plain_reason(caption: str | None, width: int | None, height: int | None) -> Reason:
    text = caption or ""
    if not (len(text.split()) > 2 and len(text) > 5):
        return Reason.CAPTION_TOO_SHORT
    if width is None or height is None:
        return Reason.SIZE_UNKNOWN
    if min(width, height) < 200:
        return Reason.IMAGE_TOO_SMALL
    if max(width, height) / min(width, height) > 3.0:
        return Reason.TOO_ELONGATED
    return Reason.PASSES


def test_reasons_equal_the_definition(demo_captions: pl.Series) -> None:
    captions = pl.concat([pl.Series(ODD * 20), demo_captions])
    rng = np.random.default_rng(0)
    sides = [None, 0, 1, 199, 200, 201, 599, 600, 601, 603, 1000]
    width, height = (
        pl.Series(rng.choice(np.array(sides, object), len(captions)).tolist(), dtype=pl.Int32) for _ in range(2)
    )
    expected = [plain_reason(*row) for row in zip(captions, width, height, strict=True)]
    found = basic_reasons(captions, width, height)
    assert found.dtype == np.int8
    assert found.tolist() == expected
    assert set(found.tolist()) == set(Reason) - {Reason.OTHER_LANGUAGE}


def test_values_at_the_limits_pass() -> None:
    captions = pl.Series(["one two"])

    def reason(width: int, height: int, min_words: int = 2, min_chars: int = 7, min_side: int = 10) -> int:
        limits = {"min_words": min_words, "min_chars": min_chars, "min_side": min_side}
        return int(basic_reasons(captions, pl.Series([width]), pl.Series([height]), max_aspect=1.5, **limits)[0])

    assert reason(10, 15) == Reason.PASSES
    assert reason(10, 15, min_words=3) == Reason.CAPTION_TOO_SHORT
    assert reason(10, 15, min_chars=8) == Reason.CAPTION_TOO_SHORT
    assert reason(9, 10) == Reason.IMAGE_TOO_SMALL
    assert reason(16, 10) == Reason.TOO_ELONGATED
    assert reason(0, 0, min_side=0) == Reason.TOO_ELONGATED


def test_no_pairs_give_no_reasons() -> None:
    none = pl.Series([], dtype=pl.Int32)
    assert basic_reasons(pl.Series([], dtype=pl.String), none, none).tolist() == []


def test_the_language_is_the_most_probable_one_of_the_model(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext")
    spoken = {
        "en": ["the dog on the beach", "a photo of a house"],
        "de": ["der Hund am Strand", "ein Bild von dem Haus"],
    }
    lines = [f"__label__{code} {text}\n" for code, texts in spoken.items() for text in texts for _ in range(50)]
    (tmp_path / "lines.txt").write_text("".join(lines))
    trained = fasttext.train_supervised(
        str(tmp_path / "lines.txt"), epoch=25, dim=8, minn=2, maxn=3, bucket=1000, thread=1, verbose=0
    )
    trained.save_model(str(tmp_path / "model.bin"))
    model = load_language_model(str(tmp_path / "model.bin"))
    captions = pl.Series(["the house\non the beach", None, "der Hund\r\nvon dem Haus", "", "a dog"])
    found = languages(captions, model)
    assert found.dtype == pl.String
    assert found.gather([0, 2, 4]).to_list() == ["en", "de", "en"]
    assert found[1] == found[3], "a missing caption counts as an empty one"
    assert languages(captions.head(0), model).to_list() == []


def test_without_fasttext_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(ModuleNotFoundError, match="pip install fasttext-community"):
        load_language_model("lid.176.bin")
