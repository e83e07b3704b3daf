"""What builds a stage is a value: it can be pickled, and shows its inputs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import polars as pl

from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.selection import selection_stages
from orchestrator.selection.pool_mask import BuildPoolMask
from orchestrator.source import open_source
from tests.support.pools import config_of

GEOMETRY = {"embedding": "mine", "clustering": {"k": 2}}


def test_every_build_is_a_value(tmp_path: Path) -> None:
    vectors = {"key": ["a", "b"], "image_embedding": np.eye(2).tolist(), "text_embedding": np.eye(2).tolist()}
    pl.DataFrame(vectors).write_parquet(tmp_path / "vectors.parquet")
    (tmp_path / "entries.txt").write_text("red\n")
    (tmp_path / "captions.csv").write_text("caption\na red star\n")
    steps = {
        "keep_list": {"uri": str(tmp_path / "vectors.parquet")},
        "basic": {},
        "wfpp": {},
        "metaclip": {"metadata": str(tmp_path / "entries.txt")},
        "semdedup": GEOMETRY,
        "clip_score": {"embedding": "mine"},
        "floor": {"method": "clip_score", "embedding": "mine", "threshold": 0.2},
        "random": {},
        "ssp": GEOMETRY,
        "dbp": GEOMETRY,
    }
    mine = {"kind": "columns", "uri": str(tmp_path / "vectors.parquet"), "text_column": "text_embedding"}
    source = {"format": "table", "uri": str(tmp_path / "captions.csv")}
    selection = {"steps": list(steps), **steps}
    config = config_of(source, tmp_path / "store", selection=selection, embedding={"mine": mine})
    catalog = Catalog(Artifact.of(config.store, "catalog", version=1))
    stages = selection_stages(config, open_source(config.source), catalog)
    assert isinstance(stages[0].build, BuildPoolMask)
    assert len({type(stage.build) for stage in stages}) > 15
    for stage in stages:
        copy = pickle.loads(pickle.dumps(stage.build))
        assert type(copy) is type(stage.build), stage.name
        assert repr(copy) == repr(stage.build), stage.name
