"""Bad samples are counted over all ranks, named, limited, and kept over a restart."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.training.agreement import AgreedError
from orchestrator.training.bad_samples import BadSamples
from orchestrator.training.decoding import NO_CAPTION


def rows(*problems: str) -> dict[str, np.ndarray]:
    keys = np.array([f"{i:03d}" for i in range(len(problems))], object)
    column = np.array(problems, object)
    return {"key": keys, "problem": column, "valid": column == ""}


def merge(samples: BadSamples, seen: int) -> None:
    samples.merge([samples.take_new()], "pretrain", seen)


def test_bad_samples_are_counted_and_named() -> None:
    samples = BadSamples(max_share=0.05)
    samples.add(rows("", "undecodable: no", "", NO_CAPTION))
    merge(samples, 4)
    assert (samples.total, samples.unreadable) == (2, 1)
    assert samples.examples == ["001: undecodable: no", f"003: {NO_CAPTION}"]


def test_counts_of_all_ranks_are_added_once() -> None:
    first, second = BadSamples(max_share=0.5), BadSamples(max_share=0.5)
    first.add(rows("undecodable: no", ""))
    second.add(rows("", NO_CAPTION))
    new = [first.take_new(), second.take_new()]
    for samples in (first, second):
        samples.merge(new, "pretrain", 4)
        assert (samples.total, samples.unreadable) == (2, 1)
    assert first.take_new() == (0, 0, [])


def test_too_many_bad_samples_end_the_phase() -> None:
    samples = BadSamples(max_share=0.01)
    samples.add(rows(*["undecodable: no"] * 50))
    with pytest.raises(AgreedError, match=r"50 of 1,000 samples.*training\.max_bad_pairs"):
        merge(samples, 1000)


def test_a_few_early_bad_samples_and_missing_captions_do_not_end_the_phase() -> None:
    samples = BadSamples(max_share=0.05)
    samples.add(rows("undecodable: no", "undecodable: no", *[NO_CAPTION] * 30))
    merge(samples, 32)
    assert samples.total == 32


def test_a_keep_list_of_pairs_without_captions_ends_the_phase() -> None:
    samples = BadSamples(max_share=0.05, max_captionless=0.5)
    samples.add(rows(*["", NO_CAPTION] * 50))
    merge(samples, 100)
    samples.add(rows(*[NO_CAPTION] * 100))
    with pytest.raises(AgreedError, match=r"150 of 200 samples have no caption .*source\.limits\.max_captionless"):
        merge(samples, 200)


def test_counts_are_restored_after_a_restart() -> None:
    samples = BadSamples(max_share=0.5)
    samples.add(rows("", "undecodable: no"))
    merge(samples, 2)
    again = BadSamples(max_share=0.5)
    again.restore(samples.state())
    assert again.state() == samples.state() == {"skipped": 1, "unreadable": 1, "examples": samples.examples}
