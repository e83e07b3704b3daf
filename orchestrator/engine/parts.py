"""A stage as parts: the unit of work and of resume.

`build_parts` runs one function over the items of a stage through Ray Data. Each item's files are written whole, then
its summary (`parts/NNNNNN.json`) as the mark of completion, all inside the task; the stage's manifest comes last. A
killed stage goes on with the items whose summary is missing. Where what is read for one item serves its neighbours, the
work takes runs of items that are missing (`InRuns`); each still has files and a mark of its own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray

from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Meter, current_meter
from orchestrator.engine.stopwatch import Stopwatch
from orchestrator.storage import files

Summary = dict[str, Any]
MAX_PART_BLOCKS = 2000
# enough for even work; with a block for each part, assignment to 500 clusters was a third slower: each costs a start.
# Of tasks there are no fewer than LEAST_TASKS, so that an autoscaler that was told nothing has something to go by
BLOCKS_PER_CPU, LEAST_TASKS = 16, 128
# passes with small answers, all of which come back to the driver: see `over_blocks`
MAX_ANSWER_BLOCKS, ANSWER_BLOCKS_PER_CPU = 256, 4


class PartResult(NamedTuple):
    """What the work on one item gives: files by ending, and a small JSON-like summary (its numbers are summed)."""

    files: dict[str, bytes]
    summary: Summary


Work = Callable[[Any], PartResult]
RunWork = Callable[[Sequence[Any]], Iterable[PartResult]]


@dataclass(frozen=True)
class InRuns:
    """Work on runs of consecutive items: `make_work()` gives what takes a run and gives the items' results in order,
    each of which is written before the next one is asked for; an item is `share` of a run, the larger ones whole."""

    make_work: Callable[[], RunWork]
    share: Callable[[Any], float]


@dataclass(frozen=True)
class _Run:
    indices: list[int]
    items: list[Any]


def part_path(artifact: Artifact, index: int, ending: str) -> str:
    """Where the file of item `index` lies."""
    return artifact.path("parts", f"{index:06d}.{ending}")


def write_part(artifact: Artifact, index: int, result: PartResult) -> Summary:
    """Writes an item's files and, after them, its summary as the mark of completion, which it gives."""
    for ending, data in result.files.items():
        files.write(part_path(artifact, index, ending), data)
    summary = {"index": index, **result.summary}
    files.write_json(part_path(artifact, index, "json"), summary)
    return summary


class _Worker:
    """Runs the work on batches of runs; as an actor it makes its work (a loaded table, a model) once."""

    def __init__(self, artifact: Artifact, make_work: Callable[[], RunWork], meter: Meter):
        self.artifact, self.work, self.meter = artifact, make_work(), meter

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        return self.meter.around(self._done)(batch)

    def _done(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        summaries = []
        for run in batch["run"]:
            for index, result in zip(run.indices, self.work(run.items), strict=True):
                summaries.append(json.dumps(write_part(self.artifact, index, result)))
        return {"summary": summaries}


def build_parts(
    artifact: Artifact,
    items: Sequence[Any],
    make_work: Callable[[], Work] | InRuns,
    *,
    display: Display,
    name: str,
    count: str = "rows",
    num_actors: int | None = None,
    num_gpus: int = 0,
    check: Callable[[list[Summary]], None] | None = None,
    totals: Callable[[list[Summary]], dict[str, Any]] | None = None,
) -> Artifact:
    """Computes the items that are missing and publishes the artifact.

    `make_work()` is called once an item (a run, of `InRuns`) in tasks, or once an actor with `num_actors` (each with
    `num_gpus`); `count` names the summary's field that the display counts; `check` may refuse what came out before the
    manifest is written; `totals` replaces the sums. Errors: whatever the work raises, through Ray."""
    elapsed = Stopwatch(artifact)
    with display.stage(name) as progress:
        done = done_summaries(artifact)
        counted = sum(summary.get(count, 0) for summary in done.values())
        progress.update(counted)
        missing = [(index, item) for index, item in enumerate(items) if index not in done]
        for summary in _run(artifact, missing, make_work, num_actors, num_gpus):
            done[summary["index"]] = summary
            counted += summary.get(count, 0)
            progress.update(counted)
            elapsed.save()
        summaries = [done[index] for index in range(len(items))]
        if check is not None:
            check(summaries)
        artifact.publish(totals=(totals or sums)(summaries), parts=summaries, seconds=elapsed.seconds)
        elapsed.remove()
    return artifact


def _run(
    artifact: Artifact,
    missing: list[tuple[int, Any]],
    work: Callable[[], Work] | InRuns,
    num_actors: int | None,
    num_gpus: int,
) -> Iterator[Summary]:
    if not missing:
        return
    if not isinstance(work, InRuns):
        work = InRuns(partial(_one_by_one, work), lambda _: 1.0)
    rows, make_work, meter = [{"run": run} for run in _runs(missing, work.share)], work.make_work, current_meter()
    dataset = ray.data.from_items(rows, override_num_blocks=_num_blocks(len(rows), num_actors))
    if num_actors:
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(num_actors, len(rows)))
        done = dataset.map_batches(
            _Worker, fn_constructor_args=(artifact, make_work, meter), batch_size=1, compute=pool, num_gpus=num_gpus
        )
    else:

        def in_task(batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
            # the worker is made inside the task, so that only its recipe travels
            return _Worker(artifact, make_work, Meter())(batch)

        done = dataset.map_batches(meter.around(in_task), batch_size=1)
    for row in done.iter_rows():
        yield json.loads(row["summary"])


def _num_blocks(num_runs: int, num_actors: int | None) -> int:
    if num_actors:
        return min(num_runs, BLOCKS_PER_CPU * num_actors)
    return min(num_runs, MAX_PART_BLOCKS, max(LEAST_TASKS, BLOCKS_PER_CPU * ray_cluster.num_cpus()))


def _one_by_one(make_work: Callable[[], Work]) -> RunWork:
    return partial(map, make_work())


def _runs(missing: list[tuple[int, Any]], share: Callable[[Any], float]) -> list[_Run]:
    runs, filled = list[_Run](), 0.0
    for index, item in missing:
        filled += share(item)
        if not runs or filled > 1:
            runs.append(_Run([], []))
            filled = share(item)
        runs[-1].indices.append(index)
        runs[-1].items.append(item)
    return runs


def done_summaries(artifact: Artifact) -> dict[int, Summary]:
    """The summaries of the items that are finished, by index."""
    uris = [artifact.path("parts", name) for name in files.names(artifact.path("parts")) if name.endswith(".json")]
    with ThreadPoolExecutor(32) as pool:
        return {summary["index"]: summary for summary in pool.map(files.read_json, uris)}


def num_done(artifact: Artifact) -> int:
    """How many items are finished."""
    return sum(name.endswith(".json") for name in files.names(artifact.path("parts")))


def sums(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Every number of the summaries summed; a mapping of counts is summed key by key."""
    totals: dict[str, Any] = {}
    for summary in summaries:
        for key, value in summary.items():
            if isinstance(value, dict):
                inner = totals.setdefault(key, {})
                for name, number in value.items():
                    inner[name] = inner.get(name, 0) + number
            elif isinstance(value, (int, float)) and key != "index":
                totals[key] = totals.get(key, 0) + value
    return totals


Item = TypeVar("Item")
Answer = TypeVar("Answer")


def over_blocks(items: Sequence[Item], answer: Callable[[list[Item]], Answer]) -> Iterator[Answer]:
    """The answer of each of at most 256 runs of items, in no order; there is at least one item.

    A few runs for each CPU: an answer may be large, such as the histograms of many groups, and all come back."""
    num_blocks = min(len(items), MAX_ANSWER_BLOCKS, ANSWER_BLOCKS_PER_CPU * ray_cluster.num_cpus())
    blocks = np.array_split(np.arange(len(items)), num_blocks)
    rows = [{"items": [items[index] for index in block]} for block in blocks]
    meter = current_meter()

    def answers(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        # pickled by hand: a column of arrays would come back with other types
        return {"answer": [pickle.dumps(meter.around(answer)(list(block))) for block in batch["items"]]}

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map_batches(answers, batch_size=1).iter_rows():
        yield pickle.loads(row["answer"])
