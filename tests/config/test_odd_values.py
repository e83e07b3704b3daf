"""Values of another form than the setting's: null, one value in place of a list, a group that is none, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import compose_config, for_hydra
from orchestrator.config import Config
from orchestrator.errors import UserError


def compose(*overrides: str, folder: Path | str | None = None) -> Config:
    return compose_config(for_hydra(["source.uri=pool.tar", *overrides]), folder and str(folder))


def test_single_value_is_a_list_of_one() -> None:
    config = compose(
        "selection.steps=random",
        "embedding.clip.towers=image",
        "evaluation.zero_shot.templates='a photo of a {}'",
        "sweep.seeds=3",
        "sweep.seed_keys=training.seed",
        "sweep.space={rate: {keys: training.lr, grid: 0.001}}",
    )
    assert config.selection.steps == ("random",)
    assert config.embedding["clip"].towers == ("image",)  # type: ignore[union-attr]
    assert config.evaluation.zero_shot.templates == ("a photo of a {}",)
    assert (config.sweep.seeds, config.sweep.seed_keys) == ((3,), ("training.seed",))
    assert (config.sweep.space["rate"].keys, config.sweep.space["rate"].grid) == (("training.lr",), (0.001,))
    # text is a form of its own there
    assert compose("source.uri=pool.tar").source.uri == "pool.tar"


@pytest.mark.parametrize("override", ["finetune=null", "finetune=false", "+exp=off"])
def test_finetune_null_switches_the_phase_off(override: str, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "off.yaml").write_text("# @package _global_\nfinetune: null\n")
    assert not compose(override, folder=tmp_path).finetune.enabled


def test_null_means_no_evaluation_set() -> None:
    config = compose("evaluation.zero_shot=null", "evaluation.retrieval=null", "evaluation.tasks=null")
    assert (config.evaluation.zero_shot.uri, config.evaluation.retrieval.uri, config.evaluation.tasks) == (
        None,
        None,
        {},
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training=null",
            r"training=null: expected the name of a file in conf/training: default; .*training\.KEY=VALUE",
        ),
        ("+evaluation=null", r"evaluation=null: expected the name of a file in conf/evaluation: datacomp38, default"),
        ("source=5", "source=5: expected the name of a file in conf/source: demo, parquet, table, webdataset"),
        ("+exp=null", r"\+exp=null: expected the name of a file in conf/exp: "),
        ("finetune={enabled: false}", r"expected the name of a file in conf/finetune: default; .*finetune\.KEY=VALUE"),
        ("selection.wfpp=null", r"selection\.wfpp: got null, expected a group of settings, such as \{key: value\}"),
        ("selection.wfpp=0.5", r"selection\.wfpp: got 0\.5, expected a group of settings"),
        ("+selection.second=random", r"selection\.second: got 'random', expected a group of settings"),
        ("selection.steps=null", r"selection\.steps: got null, expected a list, such as \[a, b\]"),
        ("selection.steps=5", r"selection\.steps\.0: got 5, expected a valid string"),
        ("selection.semdedup.clustering=null", r"selection\.semdedup\.clustering: got null, expected a group"),
        ("embedding.clip=null", r"embedding\.clip: got null, expected a group of settings"),
        ("source.limits=null", r"source\.limits: got null, expected a group of settings"),
        ("sweep.space.rate=null", r"sweep\.space\.rate: got null, expected a group of settings"),
        ("sweep.space.rate=5", r"sweep\.space\.rate: got 5, expected a group of settings"),
        ("training.augmentation.scale=0.5", r"training\.augmentation\.scale: got 0\.5, expected a list"),
        ("training.lr=null", r"training\.lr: got null, expected a valid number"),
    ],
)
def test_other_form_is_one_line_with_the_key(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        compose(override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1\nb: {", r"is not YAML: .*odd\.yaml., line 1"),
        (b"\xff\xfe", "is not YAML"),
        (b"- 1\n- 2\n", r"sets \[1, 2\]; expected `# @package _global_` as the first line"),
        (b"", r"sets \{\}; expected `# @package _global_`"),
        (b"# @package _global_\nnmae: x\n", "nmae: no such key"),
        (b"# @package _global_\ntraining: null\n", "training: got null, expected a group of settings"),
    ],
)
def test_broken_experiment_file_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "odd.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        compose("+exp=odd", folder=tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file.yaml"])
def test_missing_config_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("")
    with pytest.raises(UserError, match=rf"--config-dir={tmp_path}/{name}: no such folder"):
        compose(folder=tmp_path / name)


@pytest.mark.parametrize(
    "key", ["store", "run", "to", "checkpoint", "source.uri", "evaluation.zero_shot.uri", "evaluation.root"]
)
def test_empty_path_is_not_the_working_folder(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: got an empty value, expected a path or URI"):
        compose(f"{key}=")
