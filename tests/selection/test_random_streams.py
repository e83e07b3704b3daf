"""Each random step has its own stream, and a fingerprint that names it where its numbers are not those of earlier
versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.selection import selection_stages
from orchestrator.selection.random_stream import seed_of
from orchestrator.source import open_source
from tests.support.pools import config_of

GEOMETRY = {"embedding": "mine", "clustering": {"k": 2}}
METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "metaclip": {},
    "semdedup": {**GEOMETRY, "order": "random"},
    "ssp": {**GEOMETRY, "order": "random"},
    "dbp": {**GEOMETRY, "order": "random"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = {"key": ["a", "b"], "image_embedding": np.eye(2).tolist()}
    pl.DataFrame(vectors).write_parquet(tmp_path / "vectors.parquet")
    (tmp_path / "entries.txt").write_text("red\n")
    (tmp_path / "captions.csv").write_text("caption\na red star\n")
    return tmp_path


def planned(folder: Path, steps: Mapping[str, Mapping[str, Any]]) -> tuple[Config, Catalog, list[Stage]]:
    source = {"format": "table", "uri": str(folder / "captions.csv")}
    nodes = {
        name: {"metadata": str(folder / "entries.txt"), **node} if "metaclip" in (name, node.get("method")) else node
        for name, node in steps.items()
    }
    mine = {"kind": "columns", "uri": str(folder / "vectors.parquet")}
    selection = {"steps": list(nodes), **nodes}
    config = config_of(source, folder / "store", selection=selection, embedding={"mine": mine})
    catalog = Catalog(Artifact.of(config.store, "catalog", version=1))
    return config, catalog, selection_stages(config, open_source(config.source), catalog)


def keep_list(folder: Path, name: str, node: Mapping[str, Any]) -> Artifact:
    stages = planned(folder, {name: node})[2]
    return next(stage.artifact for stage in stages if (stage.role, stage.step) == (Role.KEEP, name))


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_of_one_method_have_two_streams(method: str, folder: Path) -> None:
    node = METHODS[method]
    one, other = keep_list(folder, method, node), keep_list(folder, "second", {"method": method, **node})
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("method", ["semdedup", "ssp", "dbp"])
@pytest.mark.parametrize("order", ["hard", "easy"])
def test_a_name_changes_nothing_where_nothing_is_random(method: str, order: str, folder: Path) -> None:
    node = {**GEOMETRY, "order": order}
    one, other = keep_list(folder, method, node), keep_list(folder, "second", {"method": method, **node})
    assert one.fingerprint == other.fingerprint


def test_random_keeps_the_fingerprint_of_earlier_versions(folder: Path) -> None:
    config, catalog, stages = planned(folder, {"random": {"keep_fraction": 0.5}})
    *_, incoming, kept = stages
    earlier = Artifact.of(
        config.store,
        "keep",
        version=2,
        catalog=catalog.artifact,
        incoming=incoming.artifact,
        settings={"keep_fraction": 0.5, "keep_pairs": None, "method": "random", "seed": 0},
        scored=None,
    )
    assert kept.artifact == earlier


def test_metaclip_keeps_the_fingerprint_of_earlier_versions(folder: Path) -> None:
    config, catalog, stages = planned(folder, {"metaclip": {"t": 5, "seed": 3}})
    pool, counts, _, kept = stages
    inputs = {"catalog": catalog.artifact, "incoming": pool.artifact, "counts": counts.artifact, "t": 5.0, "seed": 3}
    assert kept.artifact == Artifact.of(config.store, "keep", version=1, **inputs)


def test_the_seed_of_a_stream_depends_on_name_and_seed(folder: Path) -> None:
    config, catalog, stages = planned(folder, {"random": {"seed": 4}, "second": {"method": "random", "seed": 4}})

    def seed(name: str, settings: str) -> int:
        return seed_of(
            Step(
                name=name,
                settings=config.selection.settings[settings],
                store_uri=config.store,
                source=open_source(config.source),
                catalog=catalog,
                incoming=stages[0].artifact,
                num_actors=None,
            )
        )

    assert seed("random", "random") == 4
    assert len({seed("random", "random"), seed("second", "second"), seed("third", "second")}) == 3
