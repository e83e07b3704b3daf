"""What tasks share is unpickled once a process, and few such things are kept."""

from __future__ import annotations

import pytest
import ray

from orchestrator.engine.process_cache import MOST_KEPT, fetched

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_same_object_for_every_task() -> None:
    reference = ray.put({"shards": ["a.tar"]})
    assert fetched(reference) == {"shards": ["a.tar"]}
    assert fetched(reference) is fetched(reference)


def test_what_was_used_last_is_kept() -> None:
    references = [ray.put([number]) for number in range(MOST_KEPT + 1)]
    first = fetched(references[0])
    others = [fetched(reference) for reference in references[1:]]
    assert fetched(references[-1]) is others[-1]
    assert fetched(references[0]) is not first
    assert fetched(references[0]) == first
