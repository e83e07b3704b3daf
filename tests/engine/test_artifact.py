"""A fingerprint changes exactly with the settings that matter, and an artifact with a manifest is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog, catalog_stage
from orchestrator.engine.artifact import Artifact, fingerprint
from orchestrator.selection import selection_stages
from orchestrator.source import open_source
from orchestrator.training.stage import Phase, training_stage
from tests.support.pools import config_of, make_pairs, write_table, write_tars, write_zero_shot


def test_a_fingerprint_depends_on_the_value_alone() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    values: list[Any] = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": None}, [1, 2], [2, 1], 1.0, "x"]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_the_fingerprint_depends_on_kind_version_and_inputs(tmp_path: Path) -> None:
    store = str(tmp_path)
    one = Artifact.of(store, "scores", version=1, t=0.1)
    assert one == Artifact.of(store, "scores", version=1, t=0.1)
    others = [
        Artifact.of(store, "scores", version=2, t=0.1),
        Artifact.of(store, "scores", version=1, t=0.2),
        Artifact.of(store, "words", version=1, t=0.1),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert Artifact.of("s3://elsewhere", "scores", version=1, t=0.1).fingerprint == one.fingerprint
    below = Artifact.of(store, "keep", version=1, scored=one)
    assert below.made_from["scored"] == one.fingerprint
    assert below.fingerprint != Artifact.of(store, "keep", version=1, scored=others[0]).fingerprint


def test_an_artifact_with_a_manifest_is_complete(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "scores", version=1)
    (tmp_path / "scores" / artifact.fingerprint / "parts").mkdir(parents=True)
    assert not artifact.is_complete()
    artifact.publish(totals={"rows": 3}, parts=[{"rows": 3}], seconds=1.5)
    assert artifact.is_complete()
    assert artifact.totals == {"rows": 3}
    manifest = json.loads(Path(artifact.path("manifest.json")).read_text())
    assert manifest == {"made_from": artifact.made_from, "totals": {"rows": 3}, "parts": [{"rows": 3}], "seconds": 1.5}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tars(tmp_path_factory.mktemp("pool") / "tars", make_pairs(8), num_shards=2)


def fingerprints(config: Config) -> dict[str, str]:
    """The fingerprints of all stages up to fine-tuning, without any computation."""
    source = open_source(config.source)
    read = catalog_stage(config.store, source, config.source.limits)
    catalog = Catalog(read.artifact)
    stages = [read, *selection_stages(config, source, catalog)]
    pretrain = training_stage(
        config, Phase(name="pretrain", config=config.training, keep=stages[-1].artifact, start=None), source, catalog
    )
    pool = stages[1].artifact
    finetune = training_stage(
        config, Phase(name="finetune", config=config.finetune, keep=pool, start=pretrain.artifact), source, catalog
    )
    return {stage.name: stage.artifact.fingerprint for stage in [*stages, pretrain, finetune]}


ALL = {"catalog", "pool", "count words, wfpp", "sum words, wfpp", "score, wfpp", "wfpp", "pretrain", "finetune"}
TRAINED = {"pretrain", "finetune"}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, set()),
        ({"selection": {"steps": ["wfpp"], "wfpp": {"keep_fraction": 0.5}}}, {"wfpp", *TRAINED}),
        ({"selection": {"steps": ["wfpp"], "wfpp": {"t": 1e-6}}}, {"score, wfpp", "wfpp", *TRAINED}),
        ({"selection": {"steps": ["wfpp"], "wfpp": {"length_normalised": False}}}, {"score, wfpp", "wfpp", *TRAINED}),
        (
            {"selection": {"steps": ["wfpp"], "wfpp": {"min_count": 2}}},
            {"sum words, wfpp", "score, wfpp", "wfpp", *TRAINED},
        ),
        ({"selection": {"steps": ["wfpp"], "wfpp": {}, "random": {"seed": 4}}}, set()),
        ({"training": {"lr": 1e-3}}, TRAINED),
        ({"training": {"epochs": 3}}, TRAINED),
        ({"training": {"seed": 3}}, TRAINED),
        ({"training": {"augmentation": {"horizontal_flip": True}}}, TRAINED),
        ({"model": {"context_length": 16}}, TRAINED),
        ({"training": {"num_workers": 2, "cpus_per_worker": 2, "max_failures": 1}}, set()),
        ({"training": {"resize_with": "torch"}}, TRAINED),
        ({"training": {"checkpoint_every_steps": 7, "log_every_steps": 1}}, set()),
        ({"finetune": {"lr": 1e-6}}, {"finetune"}),
        ({"evaluation": {"batch_size": 3}, "tracking": {"tensorboard": False}, "cluster": {"num_cpus": 9}}, set()),
        ({"name": "another", "out": "elsewhere"}, set()),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it(
    uri: str, tmp_path: Path, changes: Any, changed: set[str]
) -> None:
    source = {"format": "webdataset", "uri": uri}
    before, after = fingerprints(config_of(source, tmp_path)), fingerprints(config_of(source, tmp_path, **changes))
    assert set(before) == set(after) == ALL
    assert {name for name in ALL if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("model", "may_differ"),
    [
        ({"name": "ViT-B-32"}, False),
        ({"name": "ViT-B-16-SigLIP", "pretrained": "webli"}, True),
        ({"name": "hf-hub:somebody/tiny"}, True),
    ],
)
def test_a_best_model_chosen_with_other_preprocessing_is_not_reused(
    uri: str, tmp_path: Path, model: dict[str, Any], may_differ: bool
) -> None:
    training = {"evaluate_every_steps": 1, "keep_model": "best", "best_metric": "zero_shot/top1"}
    evaluation = {"zero_shot": {"uri": str(write_zero_shot(tmp_path / "set", range(4)))}}
    source = {"format": "webdataset", "uri": uri}
    config = config_of(source, tmp_path, model=model, training=training, evaluation=evaluation)
    opened = open_source(config.source)
    catalog = Catalog(catalog_stage(config.store, opened, config.source.limits).artifact)
    phase = Phase(name="pretrain", config=config.training, keep=catalog.artifact, start=None)
    best = training_stage(config, phase, opened, catalog).artifact.made_from["shared"]["best"]
    assert best[:2] == ["zero_shot/top1", 1]
    assert best[3:] == ["own preprocessing"] * may_differ


def test_the_limits_of_a_source_do_not_change_fingerprints(uri: str, tmp_path: Path) -> None:
    strict = {"format": "webdataset", "uri": uri, "limits": {"max_broken_shards": 0}}
    assert fingerprints(config_of({"format": "webdataset", "uri": uri}, tmp_path)) == fingerprints(
        config_of(strict, tmp_path)
    )


def test_a_modified_file_changes_all_fingerprints(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "tars", make_pairs(4))
    source = {"format": "webdataset", "uri": uri}
    before = fingerprints(config_of(source, tmp_path))
    os.utime(tmp_path / "tars" / "00000.tar", (1, 1))
    after = fingerprints(config_of(source, tmp_path))
    assert all(before[name] != after[name] for name in ALL)


def test_a_folder_a_glob_and_braces_with_the_same_files_are_one_pool(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "table", ["a", "b", "c"], num_files=3)
    uris = [
        folder,
        f"{folder}/*.parquet",
        f"{folder}/{{00000..00002}}.parquet",
        [f"{folder}/0000{i}.parquet" for i in range(3)],
    ]
    found = []
    for one in uris:
        source = open_source(config_of({"format": "table", "uri": one}, tmp_path).source)
        found.append(Artifact.of(str(tmp_path), "catalog", version=1, source=source.identity()).fingerprint)
    assert len(set(found)) == 1
