"""A linear probe: multinomial logistic regression on frozen features, fitted with L-BFGS (Radford et al. 2021).

It minimises scikit-learn's objective, C * sum of cross-entropies + |W|^2 / 2, divided by C * n; the intercept has no
penalty. C is the best of a grid on a validation set, a tenth of the training set. Then the probe is fitted on all of
it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

# values of C, powers of ten: suited to features of norm 1
STRENGTHS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
VALIDATION_SHARE = 0.1
MAX_STEPS = 1000
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """Weights [num_classes, dim], intercepts [num_classes], and their C as `strength`."""

    weights: torch.Tensor
    intercepts: torch.Tensor
    strength: float

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return [n, num_classes] from features [n, dim]."""
        return features @ self.weights.T + self.intercepts


def fit_best(features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, seed: int) -> LinearProbe:
    """Return the probe with the best C, fitted on float [n, dim] and int64 [n]; ties go to the stronger penalty.

    Errors: `ValueError` for fewer than two images."""
    if len(labels) < 2:
        raise ValueError(f"got {len(labels)} training images, expected at least two (one to choose C)")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    num_validation = max(1, round(VALIDATION_SHARE * len(labels)))
    validation, rest = shuffled[:num_validation], shuffled[num_validation:]

    def hits(strength: float) -> int:
        probe = fit(features[rest], labels[rest], num_classes=num_classes, strength=strength)
        return int((probe.scores(features[validation]).argmax(dim=1) == labels[validation]).sum())

    return fit(features, labels, num_classes=num_classes, strength=max(STRENGTHS, key=hits))


def fit(features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, strength: float) -> LinearProbe:
    """Return the probe for one C, on the features' device and in their precision."""
    weights, intercepts = (
        torch.zeros(shape, dtype=features.dtype, device=features.device, requires_grad=True)
        for shape in ((num_classes, features.shape[1]), (num_classes,))
    )
    optimiser = torch.optim.LBFGS(
        [weights, intercepts],
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    penalty = 1 / (2 * strength * len(labels))

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = cross_entropy(features @ weights.T + intercepts, labels) + penalty * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return LinearProbe(weights.detach(), intercepts.detach(), strength)
