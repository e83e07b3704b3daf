from __future__ import annotations

import pytest

pytest.importorskip("open_clip_train")

from tests.benchmarks.check_same_loss import TOLERANCES, Losses, Pixels, batches, build, losses, our_losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> Losses:
    return losses()


@pytest.mark.parametrize("pixels", list(TOLERANCES))
def test_the_first_losses_equal_those_of_open_clip(found: Losses, pixels: Pixels) -> None:
    assert found.largest_difference(pixels) <= TOLERANCES[pixels]
    # the compared model learns: the loss at chance is ln 64 = 4.16
    assert min(found.ours) < 3.9


def test_an_error_of_a_thousandth_in_the_learning_rate_is_found(found: Losses) -> None:
    spoilt = our_losses(build(), batches(), lr_factor=1.001)
    for pixels, allowed in TOLERANCES.items():
        assert Losses(spoilt, found.theirs).largest_difference(pixels) > 2 * allowed
