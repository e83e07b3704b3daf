"""Random keys: they equal SplitMix64, depend only on seed and ordinal, and are uniform."""

from __future__ import annotations

import numpy as np

from orchestrator.pruning.order import random_keys, random_scores

MASK = 2**64 - 1


def splitmix64_outputs(state: int, num_outputs: int) -> list[int]:
    """Return outputs of the published generator, in plain Python."""
    outputs = []
    for _ in range(num_outputs):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_plain_generator_is_splitmix64() -> None:
    """Compare with the published first outputs for seed 0."""
    assert splitmix64_outputs(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_keys_equal_the_published_generator() -> None:
    for seed in (0, 1, 42, -1, 2**70 + 3):
        (state,) = splitmix64_outputs(seed & MASK, 1)
        assert random_scores(seed, 0, 200).tolist() == splitmix64_outputs(state, 200)


def test_keys_depend_only_on_seed_and_ordinal() -> None:
    whole = random_scores(7, 0, 1000)
    np.testing.assert_array_equal(random_scores(7, 313, 400), whole[313:713])
    assert random_scores(7, 10**12, 3).tolist() == random_scores(7, 10**12 - 5, 8)[5:].tolist()
    some = np.random.default_rng(0).integers(0, 1000, 300)
    np.testing.assert_array_equal(random_keys(7, some), whole[some])
    assert not np.isin(random_scores(8, 0, 1000), whole).any()
    assert len(random_scores(7, 5, 0)) == 0


def test_keys_are_uniform_and_unique() -> None:
    keys = random_scores(3, 0, 1_000_000)
    assert len(np.unique(keys)) == len(keys)
    for shift in (0, 24, 56):
        counts = np.bincount(((keys >> np.uint64(shift)) & np.uint64(255)).astype(np.intp), minlength=256)
        chi_squared = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert 150 < chi_squared < 380, "255 degrees of freedom: mean 255, standard deviation 23"
