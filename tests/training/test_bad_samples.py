"""Unusable pairs: counted, named, limited, and carried over a restart."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.training.agreement import AgreedError
from orchestrator.training.bad_samples import Skips
from orchestrator.training.decoding import NO_CAPTION


def rows(*problems: str) -> dict[str, np.ndarray]:
    keys = np.array([f"{i:03d}" for i in range(len(problems))], object)
    column = np.array(problems, object)
    return {"key": keys, "problem": column, "valid": column == ""}


def agree(skips: Skips, seen: int) -> None:
    skips.agree([skips.told()], "pretrain", seen)


def test_bad_pairs_are_counted_and_named() -> None:
    skips = Skips(max_share=0.05)
    skips.add(rows("", "undecodable: no", "", NO_CAPTION))
    agree(skips, 4)
    assert (skips.total, skips.unreadable) == (2, 1)
    assert skips.examples == ["001: undecodable: no", f"003: {NO_CAPTION}"]


def test_those_of_all_ranks_are_added_up_and_told_once() -> None:
    first, second = Skips(max_share=0.5), Skips(max_share=0.5)
    first.add(rows("undecodable: no", ""))
    second.add(rows("", NO_CAPTION))
    told = [first.told(), second.told()]
    for skips in (first, second):
        skips.agree(told, "pretrain", 4)
        assert (skips.total, skips.unreadable) == (2, 1)
    assert first.told() == (0, 0, [])


def test_a_share_above_the_limit_ends_the_phase() -> None:
    skips = Skips(max_share=0.01)
    skips.add(rows(*["undecodable: no"] * 50))
    with pytest.raises(AgreedError, match=r"50 of 1,000 samples.*training\.max_bad_pairs"):
        agree(skips, 1000)


def test_a_few_early_ones_and_any_without_caption_do_not() -> None:
    skips = Skips(max_share=0.05)
    skips.add(rows("undecodable: no", "undecodable: no", *[NO_CAPTION] * 30))
    agree(skips, 32)
    assert skips.total == 32


def test_counts_survive_a_restart() -> None:
    skips = Skips(max_share=0.5)
    skips.add(rows("", "undecodable: no"))
    agree(skips, 2)
    again = Skips(max_share=0.5)
    again.restore(skips.state())
    assert again.state() == skips.state() == {"skipped": 1, "unreadable": 1, "examples": skips.examples}
