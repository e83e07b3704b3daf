"""Unusable pairs: counted, named, limited, and carried over a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.training.feed import NO_CAPTION
from orchestrator.training.skips import Skips


def rows(*problems: str) -> dict[str, np.ndarray]:
    keys = np.array([f"{i:03d}" for i in range(len(problems))], object)
    column = np.array(problems, object)
    return {"key": keys, "problem": column, "valid": column == ""}


def test_bad_pairs_are_counted_and_named() -> None:
    skips = Skips(num_ranks=1, max_share=0.05)
    skips.add(rows("", "undecodable: no", "", NO_CAPTION))
    skips.agree("pretrain", 4)
    assert (skips.total, skips.unreadable) == (2, 1)
    assert skips.examples == ["001: undecodable: no", f"003: {NO_CAPTION}"]


def test_a_share_above_the_limit_ends_the_phase() -> None:
    skips = Skips(num_ranks=1, max_share=0.01)
    skips.add(rows(*["undecodable: no"] * 50))
    with pytest.raises(UserError, match=r"50 of 1,000 samples.*training\.max_bad_pairs"):
        skips.agree("pretrain", 1000)


def test_a_few_early_ones_and_any_without_caption_do_not() -> None:
    skips = Skips(num_ranks=1, max_share=0.05)
    skips.add(rows("undecodable: no", "undecodable: no", *[NO_CAPTION] * 30))
    skips.agree("pretrain", 32)
    assert skips.total == 32


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    skips = Skips(num_ranks=1, max_share=0.5)
    skips.add(rows("", "undecodable: no"))
    skips.agree("pretrain", 2)
    skips.save(tmp_path)
    again = Skips(num_ranks=1, max_share=0.5)
    again.restore(tmp_path)
    assert (again.total, again.unreadable, again.examples) == (1, 1, skips.examples)
