"""The space of a sweep: its points, the settings that they set, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, ConfigError, Dimension, SweepConfig
from orchestrator.errors import UserError
from orchestrator.sweep.space import check_space, configured, points, settings_of
from tests.support.pools import config_of


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate(settings)


def config(**groups: Any) -> Config:
    return config_of({"format": "table", "uri": "captions"}, Path("store"), **groups)


def test_a_grid_is_every_combination_in_order() -> None:
    space = {"a": {"grid": [1, 2]}, "b": {"grid": ["x", "y", "z"]}}
    assert [tuple(point.values()) for point in points(sweep(space=space))] == [
        (1, "x"),
        (1, "y"),
        (1, "z"),
        (2, "x"),
        (2, "y"),
        (2, "z"),
    ]


def test_draws_for_each_point_of_the_grid_depend_only_on_the_seed() -> None:
    space = {
        "kept": {"grid": [0.3, 0.6]},
        "choice": {"choice": ["a", "b"]},
        "uniform": {"uniform": [2.0, 3.0]},
        "log": {"log_uniform": [1e-5, 1e-1]},
        "int": {"int_uniform": [3, 5]},
    }
    found = list(points(sweep(space=space, num_samples=200)))
    assert found == list(points(sweep(space=space, num_samples=200)))
    assert found != list(points(sweep(space=space, num_samples=200, search_seed=1)))
    assert [point["kept"] for point in found] == [0.3] * 200 + [0.6] * 200
    assert list(found[0]) == list(space), "named in the order of the space"
    assert {point["choice"] for point in found} == {"a", "b"}
    assert {point["int"] for point in found} == {3, 4, 5}
    assert all(2 <= point["uniform"] <= 3 and 1e-5 <= point["log"] <= 1e-1 for point in found)
    below = sum(math.log10(point["log"]) < -3 for point in found)
    assert 140 < below < 260, "half of the decades, half of the draws"


def test_a_dimension_sets_all_its_keys_or_the_one_of_its_name() -> None:
    space = {"kept": {"keys": ["selection.wfpp.keep_fraction", "selection.dbp.keep_fraction"], "grid": [0.5]}}
    space["training.lr"] = {"grid": [0.1]}
    (point,) = points(sweep(space=space))
    assert settings_of(sweep(space=space), point) == {
        "selection.wfpp.keep_fraction": 0.5,
        "selection.dbp.keep_fraction": 0.5,
        "training.lr": 0.1,
    }
    assert Dimension.model_validate({"keys": "a.b", "grid": [1]}).keys == ("a.b",)


def test_settings_reach_the_config_through_its_types() -> None:
    settings = {"selection.wfpp.keep_fraction": 0.25, "selection.steps": ["wfpp"], "training.lr": "1e-3"}
    changed = configured(config(), settings)
    assert changed.selection.settings["wfpp"].keep_fraction == 0.25  # type: ignore[union-attr]
    assert changed.training.lr == 1e-3
    assert configured(config(), {}) == config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.learning_rate": 1}, r"sweep.space: no such key training.learning_rate .*lr"),
        (
            {"selection.dpb.keep_fraction": 1},
            r"no such key selection.dpb.keep_fraction \('dpb'\), expected one of: wfpp",
        ),
        ({"training.lr.peak": 1}, r"no such key training.lr.peak"),
        ({"store": "x"}, r"a trial cannot set store;"),
        ({"sweep.samples": 3}, r"a trial cannot set sweep.samples;"),
        ({"training": 3}, r"a trial cannot set training;"),
    ],
)
def test_an_unknown_key_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(config(), settings)


def test_an_invalid_value_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"selection.wfpp.keep_fraction: got 1.5, expected .*less than or equal to 1"):
        configured(config(), {"selection.wfpp.keep_fraction": 1.5})


def test_a_fraction_beside_a_number_of_pairs_is_refused() -> None:
    both = config(selection={"steps": ["wfpp"], "wfpp": {"keep_pairs": 30}})
    message = "wfpp.keep_fraction has no effect while selection.wfpp.keep_pairs=30; set selection.wfpp.keep_pairs=null"
    with pytest.raises(UserError, match=message):
        configured(both, {"selection.wfpp.keep_fraction": 0.5})
    configured(both, {"selection.wfpp.keep_pairs": None, "selection.wfpp.keep_fraction": 0.5})
    configured(both, {"selection.wfpp.keep_pairs": 20})


def test_a_space_of_suggestions_is_checked_at_its_ends() -> None:
    kept = {"keys": "selection.wfpp.keep_fraction", "uniform": [0.5, 1.2]}
    with pytest.raises(ConfigError, match=r"selection.wfpp.keep_fraction: got 1.2"):
        check_space(config(sweep={"space": {"kept": kept}}))
    with pytest.raises(UserError, match=r"no such key training.rate"):
        check_space(config(sweep={"space": {"training.rate": {"choice": [1]}}}))
    check_space(config(sweep={"space": {"training.lr": {"log_uniform": [1e-4, 1e-2]}}}))


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"sweep.space is empty: pick a sweep"):
        list(points(sweep()))


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({}, "got no values, expected one of grid, choice"),
        ({"grid": [1], "choice": [2]}, "got grid and choice"),
        ({"grid": []}, "grid is empty"),
        ({"uniform": [2, 1]}, r"got \[2.0, 1.0\], expected \[low, high\]"),
        ({"log_uniform": [0, 1]}, "low > 0 for log_uniform"),
    ],
)
def test_a_dimension_without_values_is_refused(dimension: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"sweep.space.lr.*{message}"):
        config(sweep={"space": {"lr": dimension}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 10, "epochs": 1}, "are both set"),
        ({"seeds": [1, 1]}, "without repeats"),
        ({"seeds": []}, "at least one"),
        ({"search": "optuna", "seeds": [1, 2]}, "one seed"),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(sweep=settings)
