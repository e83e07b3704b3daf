"""Benchmark tasks in clip_benchmark's layout: found and skipped tasks, results against
clip_benchmark's own, the linear probe, and resuming."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from orchestrator.cli import compose_config, main
from orchestrator.clip import model
from orchestrator.config import Config, EvaluationConfig, TaskConfig
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.evaluation import measure_task as measuring
from orchestrator.evaluation import tasks as opening
from orchestrator.evaluation.embed import Clips, Embedder, InProcess
from orchestrator.evaluation.measure_task import measure_task
from orchestrator.evaluation.stage import checkpoint_stage
from orchestrator.evaluation.task_stage import measure_tasks, task_artifacts
from orchestrator.evaluation.tasks import Task, Tasks, open_tasks
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from tests.support.commands import Shell
from tests.support.pools import TINY_MODEL, add, kind_of, picture, torn

NAMES = [" ".join(kind_of(number)) for number in range(8)]
TEMPLATES = ("a photo of a {c}.", "a {c} number 3")


def write_split(folder: Path, samples: Sequence[Mapping[str, bytes]], *, num_shards: int = 2) -> None:
    """Write `N.tar` and `nshards.txt`; a sample is a dict of members by extension."""
    folder.mkdir(parents=True)
    for shard, rows in enumerate(np.array_split(np.arange(len(samples)), num_shards)):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in rows:
                for extension, data in samples[row].items():
                    add(tar, f"s{row:07d}.{extension}", data)
    (folder / "nshards.txt").write_text(f"{num_shards}\n")


def labelled(numbers: Sequence[int], *, grouped: bool = False) -> list[dict[str, bytes]]:
    """Return images with their class; some labels are wrong, so that classes differ. The group is in the npy."""
    samples = []
    for number in numbers:
        label = number % 8 if number % 3 else (number + number // 8) % 8
        samples.append({"jpg": picture(number), "cls": str(label).encode()})
        if grouped:
            out = io.BytesIO()
            np.save(out, np.array([number % 3, 2016]))
            samples[-1]["npy"] = out.getvalue()
    return samples


def write_task(root: Path, name: str, samples: Sequence[Mapping[str, bytes]]) -> Path:
    """Write the folder of a classification task."""
    write_split(root / name / "test", samples)
    (root / name / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / name / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return root / name


def write_retrieval(root: Path, name: str, numbers: Sequence[int]) -> Path:
    """Write the folder of a retrieval task: images with one to three captions each."""
    captions = [
        "\n".join(f"a {' '.join(kind_of(number))} seen {time} times" for time in range(1 + number % 3))
        for number in numbers
    ]
    pairs = zip(numbers, captions, strict=True)
    write_split(root / name / "test", [{"jpg": picture(number), "txt": text.encode()} for number, text in pairs])
    (root / name / "dataset_type.txt").write_text("retrieval")
    return root / name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with random weights."""
    folder = tmp_path_factory.mktemp("model") / "model"
    clip = model.build(
        name=None,
        config=TINY_MODEL["config"],  # type: ignore[arg-type]
        pretrained=None,
        image_size=None,
        context_length=None,
        seed=0,
    )
    model.save(clip, folder)
    return folder


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> Clips:
    return {"checkpoint": model.load(str(checkpoint))}


def settings_of(root: Path | str, tasks: Mapping[str, dict[str, Any]], **others: Any) -> EvaluationConfig:
    return EvaluationConfig(root=str(root), tasks={key: TaskConfig(**one) for key, one in tasks.items()}, **others)


def measured(models: Clips, settings: EvaluationConfig) -> dict[str, dict[str, Any]]:
    """Return the model's results on each task."""
    return {
        task.key: measure_task(InProcess(models, settings), task)["checkpoint"] for task in open_tasks(settings).found
    }


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: Sequence[int]) -> list[float]:
    """clip_benchmark's function without its last conversion: numpy 2.4 rejects an array of one element as a number."""
    correct = output.topk(max(topk), 1, True, True)[1].t().eq(target.view(1, -1))
    return [correct[:k].reshape(-1).float().sum().item() / len(target) for k in topk]


def with_clip_benchmark(folder: Path, checkpoint: Path) -> dict[str, float]:
    """Evaluate a set with clip_benchmark alone: its reader and metrics, open_clip's model and transform."""
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    clip.eval()
    dataset = build_wds_dataset("task", transform=preprocess, split="test", data_dir=str(folder))
    loader = torch.utils.data.DataLoader(dataset.batched(16), batch_size=None, shuffle=False)
    if dataset.classes is None:
        return zeroshot_retrieval.evaluate(clip, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeroshot_classification, "accuracy", accuracy)
        return zeroshot_classification.evaluate(
            clip, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "+evaluation=datacomp38 evaluation.root=nowhere",
            "none of the 38 tasks can be measured; imagenet1k: not there",
        ),
        ("evaluation=vtab", "evaluation.root is not set; expected the folder that holds the folders of the 13 tasks"),
        ("evaluation.root=nowhere", "there are no tasks; choose a list, such as evaluation=datacomp38"),
        ("+evaluation=datacomp evaluation.root=nowhere", "Available options in 'evaluation': datacomp38, default"),
    ],
)
def test_list_without_measurable_tasks_is_a_one_line_error(
    arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "checkpoint=ViT-B-32", *arguments.split()])
    shown = capsys.readouterr().err.strip()
    assert left.value.code == 2
    assert said in shown
    assert "\n" not in shown


def test_folders_by_any_of_their_names_and_the_others_with_their_reasons(tmp_path: Path) -> None:
    samples = labelled(range(4))
    for name in (
        "wds_one_test",
        "wds_two",
        "three",
        "wds_4_test",
        "wds_unnamed_test",
        "wds_cut_test",
        "wds_region_test",
    ):
        write_task(tmp_path, name, samples)
    (tmp_path / "wds_unnamed_test" / "classnames.txt").unlink()
    (tmp_path / "wds_cut_test" / "test" / "1.tar").unlink()
    metrics = {"region": "acc_worst_region", "winogavil": "jaccard_score_10-12"}
    names = ("one", "two", "three", "four", "unnamed", "cut", "region", "winogavil", "absent")
    tasks = {
        name: {"name": name.title(), "metric": metrics.get(name, "acc1"), "folders": ("4",) if name == "four" else ()}
        for name in names
    }
    found = open_tasks(settings_of(tmp_path, tasks))
    assert [task.key for task in found.found] == ["one", "two", "three", "four"]
    assert found.found[0].test.templates == TEMPLATES
    for key, said in {
        "unnamed": "no class names",
        "cut": "has 1 of the 2 tars that its nshards.txt counts",
        "region": "an npy beside it, and the tars have none",
        "winogavil": "the layout has no form for its samples",
        "absent": "not there, expected a folder such as wds_absent_test",
    }.items():
        assert said in found.skipped[key]
    assert len(found.skipped) == 5


def test_tasks_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    folder = write_task(tmp_path, "wds_one_test", labelled(range(4)))
    files.copy(str(folder), f"{s3_bucket}/sets/wds_one_test")
    found = open_tasks(settings_of(f"{s3_bucket}/sets", {"one": {"name": "One"}}))
    assert [len(task.test.shard_uris) for task in found.found] == [2]
    assert found.found[0].test.class_names == tuple(NAMES)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_the_numbers_are_clip_benchmarks(checkpoint: Path, tmp_path: Path, resize_mode: str) -> None:
    pytest.importorskip("clip_benchmark", reason="pip install --no-deps clip-benchmark")
    checkpoint = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((checkpoint / model.CONFIG_FILE).read_text())
    config["preprocess_cfg"]["resize_mode"] = resize_mode
    (checkpoint / model.CONFIG_FILE).write_text(json.dumps(config))
    models = {"checkpoint": model.load(str(checkpoint))}
    write_task(tmp_path, "wds_shapes_test", labelled(range(70)))
    write_retrieval(tmp_path, "wds_captions_test", range(40))
    tasks = {"shapes": {"name": "Shapes"}, "captions": {"name": "Captions", "metric": "mean_recall@1"}}
    found = measured(models, settings_of(tmp_path, tasks, batch_size=16))
    shapes, captions = found["shapes"], found["captions"]
    assert (shapes["num_images"], captions["num_images"]) == (70, 40)
    expected = with_clip_benchmark(tmp_path / "wds_shapes_test", checkpoint)
    assert set(expected) == set(shapes["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert shapes["metrics"] == pytest.approx(expected, abs=1e-7)
    assert 0 < expected["acc1"] < expected["acc5"] < 1
    assert expected["acc1"] != expected["mean_per_class_recall"]
    expected = with_clip_benchmark(tmp_path / "wds_captions_test", checkpoint)
    assert {name: captions["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-7)
    mean = (expected["image_retrieval_recall@1"] + expected["text_retrieval_recall@1"]) / 2
    assert captions["value"] == pytest.approx(mean, abs=1e-7)
    assert len(set(expected.values())) > 3


def test_groups_come_from_the_npy_and_undecodable_images_are_counted(models: Clips, tmp_path: Path) -> None:
    samples = labelled(range(40), grouped=True)
    samples[7]["jpg"] = torn(samples[7]["jpg"])
    write_task(tmp_path, "wds_region_test", samples)
    tasks = {"region": {"name": "Region", "metric": "acc_worst_region"}}
    found = measured(models, settings_of(tmp_path, tasks))["region"]
    assert (found["num_images"], found["skipped"]) == (39, 1)
    assert 0 <= found["value"] <= found["metrics"]["acc1"]
    # several models in one pass: each has its own numbers
    clip = models["checkpoint"]
    (task,) = open_tasks(settings_of(tmp_path, tasks)).found
    both = InProcess({"pretrain": clip, "finetune": clip}, settings_of(tmp_path, tasks))
    assert measure_task(both, task) == {
        "pretrain": found,
        "finetune": found,
    }
    # an image without a group is an error
    del samples[9]["npy"]
    write_task(tmp_path / "again", "wds_region_test", samples)
    with pytest.raises(UserError, match="Region: 1 of 39 images have no group"):
        measured(models, settings_of(tmp_path / "again", tasks))


def test_retrieval_with_a_tar_without_decodable_images(models: Clips, tmp_path: Path) -> None:
    pairs = [{"jpg": picture(0), "txt": b"one\n\ntwo\n"}, {"jpg": torn(picture(1)), "txt": b"three"}]
    write_split(tmp_path / "wds_pairs" / "test", pairs)
    found = measured(models, settings_of(tmp_path, {"pairs": {"name": "Pairs", "metric": "mean_recall@1"}}))["pairs"]
    assert (found["num_images"], found["skipped"], found["value"]) == (1, 1, 1.0)


def test_linear_probe_for_tasks_with_a_train_split(models: Clips, tmp_path: Path) -> None:
    def exact(numbers: Sequence[int]) -> list[dict[str, bytes]]:
        return [{"jpg": picture(number), "cls": str(number % 8).encode()} for number in numbers]

    write_task(tmp_path, "wds_with_test", exact(range(100, 140)))
    write_split(tmp_path / "wds_with_test" / "train", exact(range(96)))
    write_task(tmp_path, "wds_without_test", exact(range(16)))
    tasks = {"with": {"name": "With"}, "without": {"name": "Without"}}
    found = measured(models, settings_of(tmp_path, tasks, linear_probe=True))
    probed = {name for name in found["with"]["metrics"] if name.startswith("linear_probe_")}
    assert probed == {"linear_probe_acc1", "linear_probe_acc5", "linear_probe_mean_per_class_recall"}
    assert found["with"]["metrics"]["linear_probe_acc1"] > 0.6 > found["with"]["metrics"]["acc1"]
    assert not [name for name in found["without"]["metrics"] if name.startswith("linear")]


def config_of_tasks(tmp_path: Path, checkpoint: Path, keys: Sequence[str]) -> Config:
    """Return the config of `evaluate` on the tasks with these keys."""
    config = compose_config([f"checkpoint={checkpoint}", f"store={tmp_path / 'STORE'}"], needs_source=False)
    tasks = {key: {"name": key.title()} for key in keys}
    return config.model_copy(update={"evaluation": settings_of(tmp_path / "sets", tasks)})


def test_measured_tasks_are_kept_and_reused_by_other_lists(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        write_task(tmp_path / "sets", f"wds_{name}_test", labelled(range(2)))
    calls: list[str] = []

    def measure(embedder: Embedder, task: Task, *rest: Any) -> dict[str, Any]:
        calls.append(task.key)
        if calls == ["one", "two"]:
            raise KeyboardInterrupt
        return {"checkpoint": {"metrics": {"acc1": 0.5}, "value": 0.5, "num_images": 2, "skipped": 0}}

    monkeypatch.setattr(measuring, "measure_task", measure)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_stage(config_of_tasks(tmp_path, checkpoint, ["one", "two"])).build(Display())
    stage = checkpoint_stage(config_of_tasks(tmp_path, checkpoint, ["one", "two", "gone"]))
    capsys.readouterr()
    stage.build(Display())
    shown = capsys.readouterr().out
    assert "One: acc1 of checkpoint 50.00%, reused" in shown
    assert "Gone: skipped, not there" in shown
    assert "average over all tasks (2 of 3, incomplete): checkpoint 50.00%" in shown
    table = stage.artifact.totals["checkpoint"]["tasks"]
    assert [result["key"] for result in table["results"]] == ["one", "two"]
    assert [task["name"] for task in table["skipped"]] == ["Gone"]
    assert table["averages"] == [{"name": "all tasks", "value": 0.5, "measured": 2, "of": 3}]
    checkpoint_stage(config_of_tasks(tmp_path, checkpoint, ["three", "one"])).build(Display())
    assert calls == ["one", "two", "two", "three"]
    # a task with other images is another task
    write_split(tmp_path / "sets" / "wds_one_test" / "more", labelled(range(3)))
    (tmp_path / "sets" / "wds_one_test" / "more" / "1.tar").rename(
        tmp_path / "sets" / "wds_one_test" / "test" / "1.tar"
    )
    checkpoint_stage(config_of_tasks(tmp_path, checkpoint, ["three", "one"])).build(Display())
    assert calls == ["one", "two", "two", "three", "one"]


def tables(models: Clips, settings: EvaluationConfig, place: Path) -> dict[str, Any]:
    """Measure the task table of the model as the stage does."""
    tasks = open_tasks(settings)
    display, artifacts = Display(), task_artifacts(str(place), tasks, "models")
    with display.stage("evaluate") as progress:
        return measure_tasks(InProcess(models, settings), tasks, artifacts, settings, display, progress)["checkpoint"]


def test_task_with_unusable_files_is_skipped(models: Clips, tmp_path: Path) -> None:
    samples = labelled(range(8), grouped=True)
    lonely = [dict(sample) for sample in samples]
    del lonely[5]["npy"]
    write_task(tmp_path, "wds_lonely_test", lonely)
    damaged = write_task(tmp_path, "wds_damaged_test", samples) / "test" / "1.tar"
    damaged.write_bytes(damaged.read_bytes()[:700])
    write_task(tmp_path, "wds_whole_test", samples)
    tasks = {key: {"name": key.title(), "metric": "acc_wg"} for key in ("lonely", "damaged", "gone", "whole")}
    found = tables(models, settings_of(tmp_path, tasks), tmp_path / "STORE")
    assert [row["key"] for row in found["results"]] == ["whole"]
    reasons = {row["key"]: row["reason"] for row in found["skipped"]}
    assert reasons["lonely"] == "1 of 8 images have no group; expected one in each npy"
    assert reasons["damaged"].endswith("1.tar is damaged; an evaluation set must be whole")
    assert set(reasons) == {"lonely", "damaged", "gone"}
    assert (found["averages"][-1]["measured"], found["averages"][-1]["of"]) == (1, 4)
    # an evaluation without any measurable task is an error
    with pytest.raises(UserError, match=r"none of the 1 tasks can be measured; lonely: 1 of 8 images"):
        tables(models, settings_of(tmp_path, {"lonely": tasks["lonely"]}), tmp_path / "STORE")


@pytest.mark.parametrize(("module", "function"), [(opening, "find_shards"), (measuring, "measure_task")])
def test_failing_storage_ends_the_evaluation(
    models: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("cannot read s3://sets, tried 8 times")

    write_task(tmp_path, "wds_one_test", labelled(range(2)))
    monkeypatch.setattr(module, function, fails)
    with pytest.raises(StoreError, match="tried 8 times"):
        tables(models, settings_of(tmp_path, {"one": {"name": "One"}, "gone": {"name": "Gone"}}), tmp_path / "STORE")


def test_config_without_tasks_opens_none() -> None:
    assert open_tasks(EvaluationConfig()) == Tasks((), {})


@pytest.mark.slow
def test_evaluate_command_on_datacomp38(run_command: Shell, checkpoint: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    write_task(sets, "wds_imagenet1k_test", labelled(range(40)))
    write_task(sets, "wds_vtab-pets_test", labelled(range(24)))
    write_task(sets, "wds_wilds-fmow_test", labelled(range(30), grouped=True))
    write_retrieval(sets, "wds_flickr30k", range(20))
    command = (
        f"python -m orchestrator evaluate +evaluation=datacomp38 evaluation.root=sets checkpoint={checkpoint} out=OUT "
        "store=STORE"
    )
    done = run_command(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WinoGAViL: skipped, the layout has no form for its samples" in done.stdout
    report = json.loads((tmp_path / "OUT" / "report.json").read_text())
    table = report["tasks"]["checkpoint"]
    assert [result["name"] for result in table["results"]] == ["ImageNet 1k", "Oxford-IIIT Pet", "Flickr", "FMoW"]
    assert len(table["skipped"]) == 34
    assert [(row["measured"], row["of"]) for row in table["averages"]] == [(1, 1), (0, 6), (1, 13), (1, 3), (4, 38)]
    assert table["averages"][-1]["value"] == pytest.approx(np.mean([result["value"] for result in table["results"]]))
    assert "4 of 38, incomplete" in (tmp_path / "OUT" / "report.html").read_text()
    again = run_command(command.replace("out=OUT", "out=AGAIN"), cwd=tmp_path)
    assert "evaluate: reused" in again.stdout
