"""Shared inputs of tasks are unpickled once per process, and only the newest ones stay in memory."""

from __future__ import annotations

import pytest
import ray

from orchestrator.engine.process_cache import MAX_ENTRIES, fetched

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_every_task_gets_the_same_object() -> None:
    reference = ray.put({"shards": ["a.tar"]})
    assert fetched(reference) == {"shards": ["a.tar"]}
    assert fetched(reference) is fetched(reference)


def test_the_oldest_entry_is_removed() -> None:
    references = [ray.put([number]) for number in range(MAX_ENTRIES + 1)]
    first = fetched(references[0])
    others = [fetched(reference) for reference in references[1:]]
    assert fetched(references[-1]) is others[-1]
    assert fetched(references[0]) is not first
    assert fetched(references[0]) == first
