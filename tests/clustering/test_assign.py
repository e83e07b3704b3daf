"""Clusters of near-ties, where centroids are nearly as close: the files of the pool do not change them."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.clustering.assign import NONE, Assigned, AssignPart, read_assigned
from orchestrator.clustering.train import FILE
from orchestrator.data.catalog import PartRows
from orchestrator.data.keep_list import KeepList, pack
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import part_path, write_part
from orchestrator.pruning.clusters import Nearest, sums_by_cluster, unit
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy
from tests.support.near_ties import NUM_VECTORS, crowd

MISSING = slice(7, NUM_VECTORS, 100)


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float16]:
    stored = crowd()[0].astype(np.float16)
    stored[MISSING] = 0
    return stored


def assigned(vectors: NDArray[np.float16], num_files: int, folder: Path) -> Assigned:
    """Store vectors, a keep list of all pairs and centroids, assign part by part, and return all clusters."""
    names = ("embedding", "keep", "centroids", "clusters")
    embedding, keep, centroids, clusters = (Artifact.of(str(folder), name, version=1) for name in names)
    files.write(centroids.path(FILE), to_npy(crowd()[1]))
    work = AssignPart.load(Embedding(embedding), KeepList(keep), centroids)
    first, found = 0, []
    for index, part in enumerate(np.array_split(vectors, num_files)):
        files.write(part_path(embedding, index, "image.npy"), to_npy(part))
        write_part(keep, index, pack(np.ones(len(part), bool)))
        write_part(clusters, index, work(PartRows(index, len(part), first)))
        found.append(read_assigned(clusters, index))
        first += len(part)
    return Assigned(*map(np.concatenate, zip(*found, strict=True)))


@pytest.mark.parametrize("num_files", [2, 31])
def test_one_file_and_many_have_the_same_clusters(vectors: NDArray[np.float16], num_files: int, tmp_path: Path) -> None:
    whole, parts = (assigned(vectors, number, tmp_path / str(number)) for number in (1, num_files))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole.cluster[MISSING] == NONE).all()
    exact = np.longdouble(vectors) @ np.longdouble(crowd()[1]).T
    present = whole.cluster != NONE
    np.testing.assert_array_equal(whole.cluster[present], exact.argmax(axis=1)[present])


def test_the_products_of_faiss_depend_on_the_batch(vectors: NDArray[np.float16]) -> None:
    """Otherwise the test above tests nothing. A processor on which this fails rounds all batches alike."""
    wide, index = vectors.astype(np.float32), faiss.IndexFlatIP(vectors.shape[1])
    index.add(crowd()[1])
    whole = index.search(wide, 1)[1][:, 0]
    parts = np.concatenate([index.search(part, 1)[1][:, 0] for part in np.array_split(wide, 31)])
    if (whole == parts).all():
        pytest.skip("this processor rounds all batches alike")
    assert (whole != parts).sum() > 10


def test_sums_of_lloyds_algorithm_do_not_depend_on_the_shares(vectors: NDArray[np.float16]) -> None:
    sample, centroids = unit(vectors[np.any(vectors, axis=1)]), crowd()[1]

    def sums(pieces: list[NDArray[np.float32]]) -> NDArray[np.int64]:
        nearest = Nearest(centroids, num_threads=1)
        return sum(sums_by_cluster(piece, nearest(piece)[0], len(centroids)) for piece in pieces)

    np.testing.assert_array_equal(sums([sample]), sums(np.array_split(sample, 31)))
