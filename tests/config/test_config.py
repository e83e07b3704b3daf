"""The configuration: what is refused and how, unions, aliases, and the numbers of the experiments that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import compose_config, conf_dir, for_hydra
from orchestrator.config import Config, ParquetSource, RandomStep, TableSource, WebDatasetSource, WfppStep
from orchestrator.errors import UserError
from tests.support.pools import TINY_EXPERIMENT

EXPERIMENTS = sorted(path.stem for path in (Path(conf_dir()) / "exp").glob("*.yaml"))


def compose(*overrides: str, exp: str | None = "wfpp") -> Config:
    chosen = [f"+exp={exp}"] if exp else []
    # the demos need no URI, and have none
    uri = [] if "demo" in str(exp) or any(o.startswith("source") for o in overrides) else ["source.uri=pool.tar"]
    return compose_config(for_hydra([*chosen, *uri, *overrides]))


def test_the_experiments_are_those_promised() -> None:
    assert {"demo", "wfpp", "wfpp_laion", "wfpp_cc12m", "full_cc12m"} <= set(EXPERIMENTS)
    assert {"dbp_laion", "dbp_datacomp_medium", "ssp_laion", "semdedup_laion", "metaclip_400m"} <= set(EXPERIMENTS)
    assert {"dbp_demo", "ssp_demo", "semdedup_demo", "metaclip_demo", "wfpp_semdedup_demo", "clip_score_demo"} <= set(
        EXPERIMENTS
    )


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_every_experiment_composes_and_asks_only_for_the_source(exp: str) -> None:
    config = compose(exp=exp)
    assert config.name == exp
    for step in config.selection.steps:
        assert step in config.selection.settings


def test_wfpp_laion_has_the_numbers_it_is_named_for() -> None:
    config = compose(exp="wfpp_laion")
    training, step = config.training, config.selection.settings["wfpp"]
    assert isinstance(config.source, WebDatasetSource)
    assert (config.selection.steps, step) == (("wfpp",), WfppStep(keep_fraction=0.8, t=1e-7, min_count=5, max_words=30))
    assert (config.model.name, config.model.context_length) == ("ViT-B-32", 32)
    assert (training.epochs, training.global_batch_size, training.lr) == (32, 32_768, 5e-4)
    assert (training.weight_decay, training.warmup_steps, training.precision) == (0.2, 2000, "bf16")
    assert (training.beta1, training.beta2, training.eps) == (0.9, 0.98, 1e-6)
    assert (config.finetune.enabled, config.finetune.epochs, config.finetune.lr) == (True, 1, 1e-5)


def test_dbp_laion_is_the_papers_cheapest_run_that_beats_laion() -> None:
    config = compose(exp="dbp_laion")
    dedup, dbp = (config.selection.settings[name] for name in ("semdedup", "dbp"))
    assert config.selection.steps == ("semdedup", "dbp")
    assert (dedup.eps, dedup.clustering.k, dedup.clustering.num_iterations) == (0.07, 50_000, 100)
    assert (dbp.keep_fraction, dbp.tau, dbp.num_neighbours, dbp.balance, dbp.order) == (0.4, 0.1, 20, 0, "hard")
    assert dbp.clustering.k == 500
    assert (config.embedding[dedup.embedding].model, config.embedding[dbp.embedding].kind) == ("ViT-B-16", "timm")
    assert (config.training.epochs, config.training.global_batch_size, config.training.warmup_steps) == (
        32,
        33_792,
        2000,
    )
    assert (config.model.name, config.training.precision, config.finetune.enabled) == ("ViT-B-32", "bf16", False)


def test_a_step_names_an_embedding_that_is_declared() -> None:
    with pytest.raises(UserError, match=r"selection\.dbp\.embedding names 'dion'; declared embeddings: clip, .*dino"):
        compose("selection.steps=[dbp]", "selection.dbp.embedding=dion")


@pytest.mark.parametrize("exp", ["wfpp_cc12m", "full_cc12m"])
def test_cc12m_has_the_papers_numbers(exp: str) -> None:
    config = compose(exp=exp)
    training, finetune = config.training, config.finetune
    assert config.selection.steps == (("wfpp",) if exp == "wfpp_cc12m" else ("all",))
    assert (config.model.name, config.model.context_length) == ("ViT-B-16", 32)
    assert (training.num_workers, training.global_batch_size) == (4, 4 * 160)
    assert (training.epochs, training.lr, training.weight_decay) == (30, 1e-3, 0.2)
    assert (finetune.enabled, finetune.epochs, finetune.lr, finetune.warmup_epochs) == (True, 1, 1e-5, 0.1)
    assert finetune.warmup_steps == 0


def test_the_demo_prunes_trains_and_measures_on_the_shipped_pool() -> None:
    config = compose(exp="demo")
    assert config.source.format == "demo"
    assert (config.evaluation.zero_shot.uri, config.evaluation.retrieval.uri) == ("demo", "demo")
    assert config.finetune.enabled


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("selection.wfpp.keep_fraction=0", r"selection\.wfpp\.keep_fraction: got 0, .*greater than 0"),
        ("selection.wfpp.keep_fraction=1.5", r"selection\.wfpp\.keep_fraction: got 1\.5, .*less than or equal to 1"),
        ("selection.wfpp.keep_fraction=-0.1", r"selection\.wfpp\.keep_fraction: got -0\.1"),
        ("selection.wfpp.keep_fraction=nan", r"selection\.wfpp\.keep_fraction: got nan"),
        ("selection.wfpp.keep_fraction=abc", r"selection\.wfpp\.keep_fraction: got 'abc'"),
        ("selection.random.keep_fraction=2", r"selection\.random\.keep_fraction: got 2"),
        ("selection.wfpp.t=0", r"selection\.wfpp\.t: got 0"),
        ("selection.wfpp.min_count=0", r"selection\.wfpp\.min_count: got 0"),
        ("training.epochs=0", r"training\.epochs: got 0"),
        ("training.lr=0", r"training\.lr: got 0"),
        ("training.global_batch_size=100", r"global_batch_size=100 must be a multiple of .*lanes=64"),
        ("training.num_workers=3", r"lanes=64 must be a multiple of .*num_workers=\s*3"),
        ("training.warmup_epochs=1", r"training: give either warmup_steps or warmup_epochs"),
        ("training.augmentation.scale=[0,1]", r"training\.augmentation\.scale\.0: got 0"),
        ("source.limits.max_broken_pairs=1.1", r"source\.limits\.max_broken_pairs: got 1\.1"),
        ("model.name=null", r"model: give either model\.name or model\.config"),
        ("selection.steps=[wfpp,wfpp]", "names a step twice"),
        ("selection.steps=[second]", "names 'second'; declared steps: all, basic, .*, wfpp"),
        ("+selection.second.keep_fraction=0.5", r"selection\.second\.method: got 'second', expected one of .*'wfpp'"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_key_and_what_came(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        compose("source.uri=x", override)
    assert "\n" not in str(error.value)


def test_keep_fraction_one_is_allowed() -> None:
    assert compose("selection.wfpp.keep_fraction=1").selection.settings["wfpp"] == WfppStep(keep_fraction=1.0)


@pytest.mark.parametrize(
    ("source", "kind"), [("webdataset", WebDatasetSource), ("parquet", ParquetSource), ("table", TableSource)]
)
def test_a_source_by_its_format(source: str, kind: type) -> None:
    config = compose(f"source={source}", "source.uri=somewhere")
    assert isinstance(config.source, kind)
    assert config.source.uri == "somewhere"


def test_a_key_of_another_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"image_column"):
        compose("source=webdataset", "source.uri=x", "+source.image_column=png")


def test_the_same_method_twice_by_alias() -> None:
    config = compose("selection.steps=[wfpp,second]", "+selection.second={method: random, keep_fraction: 0.5}")
    assert config.selection.steps == ("wfpp", "second")
    assert config.selection.settings["second"] == RandomStep(keep_fraction=0.5)


def test_a_configuration_survives_json() -> None:
    config = compose("selection.steps=[wfpp,second]", "+selection.second={method: random, keep_fraction: 0.5}")
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_an_experiment_of_ones_own_composes(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "tiny.yaml").write_text(TINY_EXPERIMENT)
    config = compose_config(["+exp=tiny", "source.uri=x"], str(tmp_path))
    assert config.model.config is not None
    assert config.model.config["vision_cfg"]["image_size"] == 32
