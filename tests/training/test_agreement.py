"""Agreement of all ranks: one rank's request is enough, and the first error ends all of them."""

from __future__ import annotations

import pytest

from orchestrator.training.agreement import AgreedError, CheckpointTimer, RankRequest, from_first, gather


def test_the_request_of_one_rank_applies_to_all() -> None:
    assert RankRequest.of_all([RankRequest(), RankRequest()]) == RankRequest()
    assert RankRequest.of_all([RankRequest(stop=True), RankRequest()]) == RankRequest(stop=True)
    assert RankRequest.of_all([RankRequest(), RankRequest(checkpoint=True)]) == RankRequest(checkpoint=True)


def test_the_first_error_ends_all_ranks() -> None:
    with pytest.raises(AgreedError, match="first"):
        RankRequest.of_all([RankRequest(stop=True), RankRequest(error="first"), RankRequest(error="second")])


def test_a_single_rank_needs_no_exchange() -> None:
    assert gather("a", 1) == ["a"]
    assert from_first("a", 1) == "a"


def test_the_checkpoint_timer_is_due_after_its_interval() -> None:
    assert not CheckpointTimer(None).is_due()
    assert not CheckpointTimer(5.0).is_due()
    timer = CheckpointTimer(1e-9)
    assert timer.is_due()
    timer.seconds = 1000.0
    timer.restart()
    assert not timer.is_due()
