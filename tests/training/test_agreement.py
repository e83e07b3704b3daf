"""What all ranks agree on: any rank's wish counts, the first mistake ends all."""

from __future__ import annotations

import pytest

from orchestrator.training.agreement import AgreedError, CheckpointTimer, RankRequest, from_first, gather


def test_any_ranks_wish_is_everyones() -> None:
    assert RankRequest.of_all([RankRequest(), RankRequest()]) == RankRequest()
    assert RankRequest.of_all([RankRequest(stop=True), RankRequest()]) == RankRequest(stop=True)
    assert RankRequest.of_all([RankRequest(), RankRequest(checkpoint=True)]) == RankRequest(checkpoint=True)


def test_the_first_mistake_ends_all() -> None:
    with pytest.raises(AgreedError, match="first"):
        RankRequest.of_all([RankRequest(stop=True), RankRequest(error="first"), RankRequest(error="second")])


def test_one_rank_agrees_with_itself() -> None:
    assert gather("a", 1) == ["a"]
    assert from_first("a", 1) == "a"


def test_the_clock() -> None:
    assert not CheckpointTimer(None).is_due()
    assert not CheckpointTimer(5.0).is_due()
    timer = CheckpointTimer(1e-9)
    assert timer.is_due()
    timer.seconds = 1000.0
    timer.restart()
    assert not timer.is_due()
