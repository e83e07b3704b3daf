"""A linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS (Radford et al. 2021).

It minimises C * sum of cross-entropies + |W|^2 / 2, scikit-learn's objective, divided by C * n; the intercept is not
penalised. C is the best of a grid on a tenth of the training set that is held out, then all of it is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

# powers of ten for features of norm 1
STRENGTHS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
HELD_OUT = 0.1
MAX_STEPS = 1000
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Probe:
    """Weights [num_classes, dim], intercepts [num_classes], and the C they were fitted with."""

    weights: torch.Tensor
    intercepts: torch.Tensor
    strength: float

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """[n, num_classes] of features [n, dim]."""
        return features @ self.weights.T + self.intercepts


def fit_best(features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, seed: int) -> Probe:
    """The probe with the best C, on float [n, dim] and int64 [n]; of equal ones the stronger penalty.

    Errors: `ValueError` for fewer than two pictures."""
    if len(labels) < 2:
        raise ValueError(f"got {len(labels)} training pictures, expected at least two, one of them to choose C by")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    num_held_out = max(1, round(HELD_OUT * len(labels)))
    held_out, rest = shuffled[:num_held_out], shuffled[num_held_out:]

    def hits(strength: float) -> int:
        probe = fit(features[rest], labels[rest], num_classes=num_classes, strength=strength)
        return int((probe.scores(features[held_out]).argmax(dim=1) == labels[held_out]).sum())

    return fit(features, labels, num_classes=num_classes, strength=max(STRENGTHS, key=hits))


def fit(features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, strength: float) -> Probe:
    """The probe for one C, on the features' device and in their precision."""
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
    return Probe(weights.detach(), intercepts.detach(), strength)
