"""A sweep: the settings of its trials, how long they train, and the metric that compares them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.section import NotNegative, Positive, Section

WAYS = ("grid", "choice", "uniform", "log_uniform", "int_uniform")


class Dimension(Section):
    """One dimension of the search space: the settings that take its value, and its values, given in exactly one way."""

    keys: tuple[str, ...] = ()
    """The settings that take the value, one or a list. Empty: the setting that the dimension is named after."""
    grid: tuple[Any, ...] | None = None
    """Try each of these values."""
    choice: tuple[Any, ...] | None = None
    """Draw one of these values."""
    uniform: tuple[float, float] | None = None
    """Draw between low and high. Unit: that of the setting."""
    log_uniform: tuple[float, float] | None = None
    """Draw between low and high, uniformly in the logarithm. Unit: that of the setting."""
    int_uniform: tuple[int, int] | None = None
    """Draw an integer between low and high, both included. Unit: that of the setting."""

    @model_validator(mode="after")
    def _check_values(self) -> Dimension:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'no values'}, expected one of {', '.join(WAYS)}")
        values = getattr(self, given[0])
        if not values:
            raise ValueError(f"{given[0]} is empty, expected at least one value")
        low_high = given[0] in WAYS[2:]
        if low_high and (values[0] >= values[1] or (given[0] == "log_uniform" and values[0] <= 0)):
            raise ValueError(
                f"{given[0]}: got {list(values)}, expected [low, high] with low < high, and low > 0 for log_uniform"
            )
        return self

    @property
    def way(self) -> str:
        """The way in which the values are given, such as "grid"."""
        return next(way for way in WAYS if getattr(self, way) is not None)


class AshaConfig(Section):
    """Early stopping of trials by ASHA."""

    grace_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """No trial stops before it has seen this share of its samples. Unit: fraction of the samples."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """At each rung 1 of this many trials continues. Unit: none."""


class ControlsConfig(Section):
    """The trials that the others are compared with."""

    full: bool = True
    """Train on every pair."""
    random: bool = True
    """For each number of pairs that trials keep, train on as many random pairs."""


class SweepConfig(Section):
    """The search space, and how the sweep searches it."""

    space: dict[str, Dimension] = Field(default={})
    """The dimensions by name. Ready-made spaces: `sweep=keep_fraction`, `keep_fraction_x_num_clusters`,
    `method_x_keep_fraction`, `eps`."""
    seeds: tuple[int, ...] = (0,)
    """Every setting and every control runs once for each seed. Unit: none."""
    seed_keys: tuple[str, ...] = ("training.seed", "selection.random.seed")
    """The settings that take the seed."""
    samples: Positive | None = None
    """The budget of every pre-training, in samples seen: fewer pairs get more epochs. Null: `epochs` decides. Unit:
    samples."""
    epochs: Positive | None = None
    """The budget of every pre-training, in epochs over the pairs that the trial keeps. If both are null, the training
    group decides. Unit: epochs."""
    metric: str = "retrieval/text_to_image_recall_at_1"
    """The metric that compares trials, as SET/METRIC, measured on the pre-trained model. Use validation pairs here and
    keep the zero-shot sets for the report."""
    controls: ControlsConfig = ControlsConfig()
    """The trials that the others are compared with."""
    search: Literal["grid", "optuna"] = "grid"
    """`grid`: every point of the grid, and seeded draws. `optuna`: settings are suggested one after the other (extra
    `optuna`)."""
    num_samples: Positive = 1
    """`grid`: draws for each point of the grid. `optuna`: trials in total. Unit: trials."""
    search_seed: NotNegative = 0
    """Seed of the draws and suggestions. Unit: none."""
    early_stopping: Literal["none", "asha"] = "none"
    """`asha` stops trials that are behind after the same number of samples; it needs `sweep.samples`. Controls never
    stop early."""
    asha: AshaConfig = AshaConfig()
    """Early stopping by ASHA."""
    max_concurrent: Positive | None = None
    """Trials that run at the same time. Null: as many as fit on the cluster. Unit: trials."""
    max_failures: NotNegative = 1
    """Retries of a failed trial. After the last one the trial is reported as failed and the others continue. Unit:
    retries."""

    @model_validator(mode="after")
    def _check_search(self) -> SweepConfig:
        if self.samples and self.epochs:
            raise ValueError("sweep.samples and sweep.epochs are both set; set one of them to null")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"sweep.seeds: got {list(self.seeds)}, expected at least one seed, without repeats")
        if self.search == "optuna" and len(self.seeds) > 1:
            raise ValueError(
                "sweep.search=optuna needs one seed in sweep.seeds: it suggests new settings for every trial"
            )
        return self
