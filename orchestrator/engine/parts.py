"""A stage in parts, the unit of work and of resume.

A `PartsJob` runs one function over the items of a stage through Ray Data. The task writes each item's files, then its
summary (`parts/NNNNNN.json`), which marks the item as complete; the stage's manifest comes last. A killed stage resumes
with the items that have no summary. If reading for one item serves its neighbours too, the work takes runs of missing
items (`InRuns`); each item still has its own files and summary."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import ray

from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json
from orchestrator.engine.console import Display
from orchestrator.engine.log import captured, replay
from orchestrator.engine.metering import Meter, current_meter
from orchestrator.engine.stopwatch import Stopwatch
from orchestrator.storage import files

logger = logging.getLogger(__name__)

Summary = dict[str, Any]
MAX_PART_BLOCKS = 2000
# enough blocks for an even load; with one block per part, assignment to 500 clusters was a third slower, because each
# block costs a start. At least LEAST_TASKS tasks: an autoscaler without limits grows by the number of waiting tasks
BLOCKS_PER_CPU, LEAST_TASKS = 16, 128
# an actor needs a new process, which takes seconds; a task takes an idle one, but makes its work again. So an actor
# saves time if it does more items than this
TASKS_PER_ACTOR = 2
# for passes of which all answers come back to the driver, see `over_blocks`
MAX_ANSWER_BLOCKS, ANSWER_BLOCKS_PER_CPU = 256, 4


class PartResult(NamedTuple):
    """The result of the work on one item: files by ending, and a small JSON-like summary; its numbers are summed."""

    files: dict[str, bytes]
    summary: Summary


Work = Callable[[Any], PartResult]
RunWork = Callable[[Sequence[Any]], Iterable[PartResult]]


@dataclass(frozen=True)
class InRuns:
    """Work on runs of consecutive items: `make_work()` returns a function from a run to the results of its items.

    Each result is written before the next one is computed. `share(item)` is the fraction of a run that the item fills;
    an item of 1 or more is a run by itself."""

    make_work: Callable[[], RunWork]
    share: Callable[[Any], float]


MakeWork = Callable[[], Work] | InRuns


@dataclass(frozen=True)
class _Run:
    indices: list[int]
    items: list[Any]


def part_path(artifact: Artifact, index: int, ending: str) -> str:
    """Return the URI of a file of item `index`."""
    return artifact.path("parts", f"{index:06d}.{ending}")


def write_part(artifact: Artifact, index: int, result: PartResult) -> Summary:
    """Write an item's files and then its summary, which marks the item as complete; return the summary."""
    for ending, data in result.files.items():
        files.write(part_path(artifact, index, ending), data)
    summary = {"index": index, **result.summary}
    files.write_json(part_path(artifact, index, "json"), summary)
    return summary


class _Worker:
    """Does the work on batches of runs; an actor makes its work (a loaded table, a model) once."""

    def __init__(self, artifact: Artifact, make_work: Callable[[], RunWork], meter: Meter):
        self.artifact, self.work, self.meter = artifact, make_work(), meter

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        return self.meter.around(self._done)(batch)

    def _done(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        summaries = []
        with captured() as records:
            for run in batch["run"]:
                for index, result in zip(run.indices, self.work(run.items), strict=True):
                    summaries.append(json.dumps(write_part(self.artifact, index, result)))
        # the records of all items travel with the first one: a batch has at least one
        logged = [json.dumps(records), *["[]"] * (len(summaries) - 1)]
        return {"summary": summaries, "log": logged}


@dataclass(frozen=True)
class _InTask:
    """The work as a task: it is made inside the task, so only its recipe is sent."""

    artifact: Artifact
    make_work: Callable[[], RunWork]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        # the meter around the task measures the making of the work too
        return _Worker(self.artifact, self.make_work, Meter())(batch)


@dataclass(frozen=True)
class PartsJob:
    """The items of a stage, and the work that makes an artifact of them.

    `make_work()` is called once per item (per run, for `InRuns`) in tasks; with `num_actors` once per actor, each of
    which holds `num_gpus` GPUs. Actors start slowly, so a few items are done in `num_actors` tasks at a time. `name` is
    the title of the progress display, and `count` the number in the summaries that it counts. `check(summaries)` may
    raise before the manifest is written. `totals(summaries)` replaces the sums of the summaries in the manifest."""

    artifact: Artifact
    items: Sequence[Any]
    make_work: MakeWork
    _: KW_ONLY
    name: str
    count: str = "rows"
    num_actors: int | None = None
    num_gpus: int = 0
    check: Callable[[list[Summary]], None] | None = None
    totals: Callable[[list[Summary]], dict[str, Any]] | None = None

    def build(self, display: Display) -> Artifact:
        """Compute the missing items and publish the artifact. Errors: whatever the work raises, through Ray."""
        elapsed = Stopwatch(self.artifact)
        with display.stage(self.name) as progress:
            done = done_summaries(self.artifact)
            logger.info("%s: %d of %d parts are complete", self.name, len(done), len(self.items))
            counted = sum(summary.get(self.count, 0) for summary in done.values())
            progress.update(counted)
            for summary in self._run([(index, item) for index, item in enumerate(self.items) if index not in done]):
                done[summary["index"]] = summary
                counted += summary.get(self.count, 0)
                progress.update(counted)
                elapsed.save()
            summaries = [done[index] for index in range(len(self.items))]
            if self.check is not None:
                self.check(summaries)
            totals = (self.totals or sums)(summaries)
            self.artifact.publish(totals=totals, parts=summaries, seconds=elapsed.seconds)
            elapsed.remove()
        return self.artifact

    def _run(self, missing: list[tuple[int, Any]]) -> Iterator[Summary]:
        if not missing:
            return
        work = self.make_work
        if not isinstance(work, InRuns):
            work = InRuns(partial(_one_by_one, work), _whole_run)
        rows, meter = [{"run": run} for run in _runs(missing, work.share)], current_meter()
        dataset = ray.data.from_items(rows, override_num_blocks=_num_blocks(len(rows), self.num_actors))
        if self.num_actors and self._needs_actors(len(rows), meter):
            done = dataset.map_batches(
                _Worker,
                fn_constructor_args=(self.artifact, work.make_work, meter),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(self.num_actors, len(rows))),
                num_gpus=self.num_gpus,
            )
        else:
            in_task = meter.around(_InTask(self.artifact, work.make_work))
            at_once = min(self.num_actors, len(rows)) if self.num_actors else None
            done = dataset.map_batches(in_task, batch_size=1, compute=ray.data.TaskPoolStrategy(at_once))
        for row in done.iter_rows():
            replay(json.loads(row["log"]))
            yield json.loads(row["summary"])

    def _needs_actors(self, num_runs: int, meter: Meter) -> bool:
        # a probe measures a few items for many: their actors make the work once
        return bool(self.num_gpus) or meter.total is not None or num_runs > TASKS_PER_ACTOR * (self.num_actors or 0)


def _num_blocks(num_runs: int, num_actors: int | None) -> int:
    if num_actors:
        return min(num_runs, BLOCKS_PER_CPU * num_actors)
    return min(num_runs, MAX_PART_BLOCKS, max(LEAST_TASKS, BLOCKS_PER_CPU * ray_cluster.num_cpus()))


def _whole_run(item: Any) -> float:
    return 1.0


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
    """Return the summaries of the complete items, by index."""
    uris = [artifact.path("parts", name) for name in files.names(artifact.path("parts")) if name.endswith(".json")]
    with ThreadPoolExecutor(32) as pool:
        return {summary["index"]: summary for summary in pool.map(read_json, uris)}


def num_done(artifact: Artifact) -> int:
    """Return the number of complete items."""
    return sum(name.endswith(".json") for name in files.names(artifact.path("parts")))


def sums(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the sum of every number in the summaries; mappings of counts are summed key by key."""
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


@dataclass(frozen=True)
class _Answers(Generic[Item, Answer]):
    """The answers on blocks of items, pickled: in a plain column, Arrow would change the types of arrays in them."""

    answer: Callable[[list[Item]], Answer]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"answer": [pickle.dumps(self.answer(list(block))) for block in batch["items"]]}


def over_blocks(items: Sequence[Item], answer: Callable[[list[Item]], Answer]) -> Iterator[Answer]:
    """Yield the answer on each of at most 256 runs of items, in any order; there must be at least one item.

    A few runs per CPU: an answer may be large, such as the histograms of many groups, and all come to the driver."""
    num_blocks = min(len(items), MAX_ANSWER_BLOCKS, ANSWER_BLOCKS_PER_CPU * ray_cluster.num_cpus())
    blocks = np.array_split(np.arange(len(items)), num_blocks)
    rows = [{"items": [items[index] for index in block]} for block in blocks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map_batches(_Answers(current_meter().around(answer)), batch_size=1).iter_rows():
        yield pickle.loads(row["answer"])
