"""k-means and the assignment of clusters on a GPU: the same clusters as on a CPU, to the bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from tests.gpu.harness import Check, Skip, at_most, equal, figure
from tests.gpu.lab import Lab


def clusters(lab: Lab) -> Iterator[Check]:
    """The nearest centroids on a GPU are the CPU's to the bit, and k-means ends as good."""
    if find_spec("faiss") is None:
        raise Skip("faiss is not installed here")
    import faiss

    from orchestrator.pruning import clusters as kmeans

    if not lab.is_dry and not hasattr(faiss, "StandardGpuResources"):
        raise Skip("faiss is installed without GPU support: pip install faiss-gpu")
    num_vectors, dim, k = lab.size((200_000, 512, 500), (600, 8, 10))
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((k, dim), dtype=np.float32)
    noise = draw.standard_normal((num_vectors, dim), dtype=np.float32)
    vectors = kmeans.unit(centres[draw.integers(0, k, num_vectors)] + noise)
    found, objectives = {}, {}
    for place, num_gpus in {"gpu": 1, "cpu": 0}.items():
        hardware: Any = {"num_threads": lab.size(16, 1), "num_gpus": lab.size(num_gpus, 0)}
        start = time.perf_counter()
        trained = kmeans.train(vectors, k, seed=0, num_iterations=5, **hardware)
        objectives[place] = trained.objective[-1]
        yield figure(f"{place}: 5 iterations of k-means, k = {k}", time.perf_counter() - start, "s")
        nearest = kmeans.Nearest(kmeans.unit(centres), **hardware)
        start = time.perf_counter()
        found[place] = nearest(vectors)
        yield figure(f"{place}: assignment", num_vectors / (time.perf_counter() - start), "vectors/s")
    for what, on_gpu, on_cpu in zip(("clusters", "distances"), found["gpu"], found["cpu"], strict=True):
        yield equal(f"{what} that differ from the CPU's", int((on_gpu != on_cpu).sum()), 0)
    yield at_most("objective of k-means, relative to the CPU's", abs(objectives["gpu"] / objectives["cpu"] - 1), 1e-3)
