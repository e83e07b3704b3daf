"""Metrics of benchmark tasks against scikit-learn, their averages, the lists of tasks, and the report page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score

from orchestrator.cli import compose_config
from orchestrator.clip.linear_probe import fit, fit_best
from orchestrator.config import TaskConfig
from orchestrator.evaluation.task_metrics import Predictions, averages, classification_metrics, worst_group
from orchestrator.evaluation.task_retrieval import recalls
from orchestrator.report.page import render
from orchestrator.report.schema import Report, TaskTable
from orchestrator.report.thumbnails import Thumbnails

SHIFTS = {"ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet"}


def test_task_lists_are_those_of_datacomp() -> None:
    listed = {
        name: compose_config([f"evaluation={name}", "evaluation.root=x"], needs_source=False).evaluation.tasks
        for name in ("imagenet", "imagenet_shifts", "vtab", "retrieval", "datacomp38")
    }
    assert {name: len(tasks) for name, tasks in listed.items()} == {
        "imagenet": 1,
        "imagenet_shifts": 6,
        "vtab": 13,
        "retrieval": 2,
        "datacomp38": 38,
    }
    whole = list(listed["datacomp38"].values())
    assert len({task.name for task in whole}) == 38
    assert {task.name for task in whole if task.group == "ImageNet dist. shifts"} == SHIFTS
    of_recall = [task.name for task in whole if task.metric == "mean_per_class_recall"]
    assert of_recall == ["Caltech-101", "Oxford Flowers-102", "Oxford-IIIT Pet", "FGVC Aircraft"]
    rows = averages(listed["datacomp38"], dict.fromkeys(listed["datacomp38"], 0.5))
    assert [(row["name"], row["measured"]) for row in rows] == [
        ("ImageNet", 1),
        ("ImageNet dist. shifts", 6),
        ("VTAB", 13),
        ("Retrieval", 3),
        ("all tasks", 38),
    ]


def test_metrics_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    # class 6 has no images but is predicted; class 5 has images but is never predicted
    labels, predictions = generator.choice([0, 1, 2, 3, 4, 5], 300), generator.choice([0, 1, 2, 3, 4, 6], 300)
    predictions = np.where(generator.random(300) < 0.4, np.where(labels == 5, 0, labels), predictions)
    groups, top5 = generator.choice([0, 2, 5], 300), generator.random(300) < 0.7
    rows = Predictions(labels=labels, predicted=predictions, top5=top5, groups=groups)
    found = {
        metric: classification_metrics(rows, num_classes=7, metric=metric)[metric]
        for metric in (
            "acc1",
            "acc5",
            "mean_per_class_recall",
            "F1-macro_all",
            "acc_wg",
            "acc_worst_region",
            "acc_top5_wg",
        )
    }
    hits = labels == predictions
    worst = min(hits[groups == group].mean() for group in (0, 2, 5))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(labels, predictions)
    assert found == pytest.approx(
        {
            "acc1": hits.mean(),
            "acc5": top5.mean(),
            "mean_per_class_recall": balanced,
            "F1-macro_all": f1_score(labels, predictions, average="macro", labels=np.unique(labels)),
            "acc_wg": worst,
            "acc_worst_region": worst,
            "acc_top5_wg": min(top5[groups == group].mean() for group in (0, 2, 5)),
        }
    )
    few = Predictions(labels=labels % 4, predicted=predictions % 4, top5=top5, groups=groups)
    assert "acc5" not in classification_metrics(few, num_classes=4, metric="acc1")
    with pytest.raises(ValueError, match="1 of 2 images have no group"):
        worst_group(np.array([True, False]), np.array([0, -1]))


def test_image_is_found_by_the_best_of_its_captions() -> None:
    images = torch.eye(3)
    # image 0 has its second caption right, image 1 none, image 2 has no caption
    texts = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.6, 0.0, 0.8]])
    found = recalls(images, texts, torch.tensor([0, 0, 1]))
    assert found["text_retrieval_recall@1"] == pytest.approx(1 / 3)
    assert found["image_retrieval_recall@1"] == pytest.approx(1 / 3)
    assert found["text_retrieval_recall@10"] == pytest.approx(2 / 3)


def test_averages_count_measured_tasks() -> None:
    tasks = {
        "a": TaskConfig(name="A", group="VTAB"),
        "b": TaskConfig(name="B", group="VTAB"),
        "c": TaskConfig(name="C"),
        "d": TaskConfig(name="D", group="Retrieval"),
    }
    rows = averages(tasks, {"a": 0.5, "c": 0.25})
    assert rows == [
        {"name": "VTAB", "value": 0.5, "measured": 1, "of": 2},
        {"name": "Retrieval", "value": None, "measured": 0, "of": 1},
        {"name": "all tasks", "value": 0.375, "measured": 2, "of": 4},
    ]


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_linear_probe_agrees_with_scikit_learn(strength: float) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (400,), generator=generator)
    centres = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    features = torch.nn.functional.normalize(
        centres[labels] + 2 * torch.randn(400, 12, generator=generator, dtype=torch.float64), dim=1
    )
    ours = fit(features, labels, num_classes=5, strength=strength)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(ours.weights, theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    assert (ours.scores(features).argmax(dim=1).numpy() == theirs.predict(features.numpy())).mean() > 0.995


def test_regularisation_is_chosen_on_a_validation_part_with_a_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    features = torch.nn.functional.one_hot(labels, 3) + 0.6 * torch.randn(300, 3, generator=generator)
    probes = [fit_best(features, labels, num_classes=3, seed=0) for _ in range(2)]
    assert torch.equal(probes[0].weights, probes[1].weights)
    assert (probes[0].scores(features).argmax(dim=1) == labels).float().mean() > 0.7


def test_page_shows_skipped_tasks_and_incomplete_averages() -> None:
    evil = "<script>alert(1)</script>"
    result = {
        "key": "a",
        "name": evil,
        "group": "VTAB",
        "metric": "acc1",
        "value": 0.25,
        "num_images": 10,
        "skipped": 1,
    }
    table = TaskTable.model_validate(
        {
            "results": [{**result, "metrics": {"acc1": 0.25, "acc5": 0.5}}],
            "skipped": [{"key": "b", "name": "B", "reason": "not there"}],
            "averages": [
                {"name": "VTAB", "value": 0.25, "measured": 1, "of": 1},
                {"name": "Retrieval", "value": None, "measured": 0, "of": 1},
                {"name": "all tasks", "value": 0.25, "measured": 1, "of": 2},
            ],
        }
    )
    report = Report(
        name="r",
        verb="evaluate",
        started="2026-11-22T00:00:00+00:00",
        wall_seconds=1,
        tasks={"pretrain": table, "finetune": table},
        stages=[],
        fingerprints={},
        versions={},
        config={},
    )
    page = render(report, Thumbnails())
    for said in ("1 of 2, incomplete", "B: not there", "acc5 50.00%", "1 undecodable images skipped", "fine-tuned"):
        assert said in page
    assert "<script" not in page
    assert "Benchmark tasks" not in render(report.model_copy(update={"tasks": {}}), Thumbnails())
