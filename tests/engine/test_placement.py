"""Work that starts inside a trial of a sweep, whose placement group has no free resources; and work after the loss of a
worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.clip import model
from orchestrator.clustering import lloyd
from orchestrator.clustering.train import read_centroids
from orchestrator.config import Clustering, EvaluationConfig, OpenClipEncoder
from orchestrator.embedding.encode import _describe
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.evaluation.models import Models
from orchestrator.evaluation.on_ray import OnRay
from orchestrator.evaluation.task_classification import _probed
from orchestrator.storage import files
from tests.support.embedded import artifact, blobs, write_pool
from tests.support.pools import TINY_MODEL, Selected

pytestmark = pytest.mark.usefixtures("ray_cluster")

CPUS = 0.01
K, DIM = 4, 8
Found = TypeVar("Found")


def in_trial(call: Callable[[], Found]) -> Found:
    """Return the result of a call that runs where Ray Tune runs a trial."""
    group = placement_group([{"CPU": CPUS}])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    try:
        found: Found = ray.get(ray.remote(num_cpus=CPUS, scheduling_strategy=strategy)(call).remote(), timeout=120)
    finally:
        remove_placement_group(group)
    return found


def clustered(folder: Path, trainer: str) -> Selected:
    clustering = {"k": K, "num_iterations": 5, "seed": 1, "trainer": trainer}
    steps: dict[str, Any] = {"ssp": {"clustering": clustering, "keep_fraction": 0.5}}
    return write_pool(folder, list(blobs(200, DIM, K))).select(steps, part_rows=50)


@pytest.mark.parametrize("trainer", ["faiss", "lloyd"])
def test_a_clustering_is_trained_in_a_trial(tmp_path: Path, trainer: str) -> None:
    (stage,) = [stage for stage in clustered(tmp_path, trainer).stages if stage.role == Role.TRAIN_CENTROIDS]
    expected = read_centroids(stage.artifact)
    files.remove(stage.artifact.uri)
    in_trial(lambda: stage.build(Display()))
    np.testing.assert_array_equal(read_centroids(stage.artifact), expected)


def test_an_encoder_is_described_in_a_trial(tmp_path: Path) -> None:
    sizes = {"image_size": None, "context_length": None}
    model.save(model.build(name=None, config=TINY_MODEL["config"], pretrained=None, seed=0, **sizes), tmp_path)
    settings = OpenClipEncoder(kind="open_clip", model=str(tmp_path), pretrained=None)
    assert "image" in in_trial(lambda: _describe("mine", settings)).dims


def test_a_linear_probe_is_fitted_in_a_trial() -> None:
    embedder = OnRay(Models(references={}), EvaluationConfig())
    columns = {"features": blobs(40, DIM, 2), "labels": np.arange(40) % 2, "groups": np.zeros(40, np.int64)}
    assert "linear_probe_acc1" in in_trial(lambda: _probed(embedder, columns, columns, 2))


def test_a_worker_lost_between_passes_does_not_change_the_result(tmp_path: Path) -> None:
    sample = artifact(clustered(tmp_path, "lloyd"), Role.SAMPLE, "ssp")
    held = lloyd._hold(sample)
    assert len(held) == 4
    centroids = lloyd._start(held, sample, Clustering(k=K))
    before = lloyd._one_pass(held, centroids)
    pid = ray.get(held[1][1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    for one, other in zip(before, lloyd._one_pass(held, centroids), strict=True):
        np.testing.assert_array_equal(one, other)
