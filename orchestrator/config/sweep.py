"""A sweep: which settings its trials have, how long they train, what they are compared by."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.section import NotNegative, Positive, Section

WAYS = ("grid", "choice", "uniform", "log_uniform", "int_uniform")


class Dimension(Section):
    """One dimension of the space: the settings that take its value (by default the one of its name), and its values.

    `grid`: each of them; `choice`, `uniform`, `log_uniform`, `int_uniform` (both ends in): drawn."""

    keys: tuple[str, ...] = ()
    grid: tuple[Any, ...] | None = None
    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_key_needs_no_list(cls, raw: dict[str, Any]) -> dict[str, Any]:
        keys = raw.get("keys", ())
        return {**raw, "keys": (keys,) if isinstance(keys, str) else keys}

    @model_validator(mode="after")
    def _has_one_way(self) -> Dimension:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'no values'}, expected one of {', '.join(WAYS)}")
        values = getattr(self, given[0])
        if not values:
            raise ValueError(f"{given[0]} is empty, expected at least one value")
        low_high = given[0] in WAYS[2:]
        if low_high and (values[0] >= values[1] or (given[0] == "log_uniform" and values[0] <= 0)):
            raise ValueError(f"{given[0]}: got {list(values)}, expected [low, high] with low < high, above 0 for logs")
        return self

    @property
    def way(self) -> str:
        """Which of the ways its values are given in."""
        return next(way for way in WAYS if getattr(self, way) is not None)


class AshaConfig(Section):
    """Early stopping (ASHA): no trial stops before `grace_fraction` of its samples; 1 in `reduction_factor` goes on at
    each rung."""

    grace_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    reduction_factor: Annotated[float, Field(gt=1)] = 3


class ControlsConfig(Section):
    """What trials are compared with: training on every pair, and on as many random pairs as they keep."""

    full: bool = True
    random: bool = True


class SweepConfig(Section):
    """The space and how it is searched.

    `samples` or `epochs`: the budget of every trial's pre-training, in place of the training group's. `num_samples`:
    draws of each point of the grid, or with optuna trials in all. `metric`: SET/METRIC of the evaluation sets, measured
    on the pre-trained model."""

    space: dict[str, Dimension] = Field(default={})
    seeds: tuple[int, ...] = (0,)
    seed_keys: tuple[str, ...] = ("training.seed", "selection.random.seed")
    samples: Positive | None = None
    epochs: Positive | None = None
    metric: str = "retrieval/text_to_image_recall_at_1"
    controls: ControlsConfig = ControlsConfig()
    search: Literal["grid", "optuna"] = "grid"
    num_samples: Positive = 1
    search_seed: NotNegative = 0
    early_stopping: Literal["none", "asha"] = "none"
    asha: AshaConfig = AshaConfig()
    max_concurrent: Positive | None = None
    max_failures: NotNegative = 1

    @model_validator(mode="after")
    def _goes_together(self) -> SweepConfig:
        if self.samples and self.epochs:
            raise ValueError("sweep.samples and sweep.epochs are two budgets: set one of them to null")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"sweep.seeds: got {list(self.seeds)}, expected at least one, each once")
        if self.search == "optuna" and len(self.seeds) > 1:
            raise ValueError("sweep.search=optuna suggests a setting a trial: give one seed in sweep.seeds")
        return self
