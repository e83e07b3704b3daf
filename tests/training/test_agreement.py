"""What all ranks agree on: any rank's wish counts, the first mistake ends all."""

from __future__ import annotations

import pytest

from orchestrator.training.agreement import AgreedError, Clock, Wishes, from_first, gather


def test_any_ranks_wish_is_everyones() -> None:
    assert Wishes.of_all([Wishes(), Wishes()]) == Wishes()
    assert Wishes.of_all([Wishes(stop=True), Wishes()]) == Wishes(stop=True)
    assert Wishes.of_all([Wishes(), Wishes(checkpoint=True)]) == Wishes(checkpoint=True)


def test_the_first_mistake_ends_all() -> None:
    with pytest.raises(AgreedError, match="first"):
        Wishes.of_all([Wishes(stop=True), Wishes(mistake="first"), Wishes(mistake="second")])


def test_one_rank_agrees_with_itself() -> None:
    assert gather("a", 1) == ["a"]
    assert from_first("a", 1) == "a"


def test_the_clock() -> None:
    assert not Clock(None).is_due()
    assert not Clock(5.0).is_due()
    clock = Clock(1e-9)
    assert clock.is_due()
    clock.seconds = 1000.0
    clock.restart()
    assert not clock.is_due()
