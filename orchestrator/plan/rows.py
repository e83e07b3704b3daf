"""Build the table of a plan: for each stage what it does, its state, its pairs, and its training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.parts import num_done
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.threshold import budget
from orchestrator.selection.budget import exceeded
from orchestrator.source import Source
from orchestrator.training.checkpoint_names import steps_saved

COLUMNS = ("stage", "what it does", "state", "pairs", "samples")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The pairs that reach a stage, the pairs that are left after it, and its training samples (None: no training).

    `mark`: the numbers are exact (empty), estimated from the first shard (`~`), or upper bounds (`<`)."""

    stage: Stage
    reached: int
    left: int
    mark: str
    samples: int | None


def reaches(stages: Sequence[Stage], source: Source, catalog: Catalog) -> list[Reach]:
    """Return the reach of each stage.

    Counts are exact if the catalog exists, else estimated from the first shard. The pairs left by a filter are known
    once it is computed; until then the pairs that reach it are an upper bound."""
    total, exact = num_pairs(source, catalog)
    sign, left = "" if exact else "~", total
    found: list[Reach] = []
    steps: dict[str, tuple[int, str]] = {}
    for stage in stages:
        reached = left
        if stage.flow.keep_pairs is not None:
            left = min(left, stage.flow.keep_pairs)
        elif stage.flow.keep_fraction is not None:
            left = budget(left, stage.flow.keep_fraction)
        elif stage.flow.is_filter:
            known = stage.artifact.is_complete()
            left, sign = (KeepList(stage.artifact).num_pairs, "") if known else (left, "<")
        if stage.role in (Role.POOL, Role.KEEP):
            steps[stage.step or stage.role] = (left, sign)
        pairs, mark = left, sign
        if stage.flow.on_whole_pool or stage.artifact == catalog.artifact:
            reached, pairs, mark = total, total, "" if exact else "~"
        elif stage.flow.follows is not None:
            pairs, mark = steps[stage.flow.follows]
            reached = pairs
        samples = stage.flow.samples or (pairs * stage.flow.epochs or None)
        found.append(Reach(stage=stage, reached=reached, left=pairs, mark=mark, samples=samples))
    return found


def check_budgets(found: Sequence[Reach]) -> None:
    """Check that the pairs reach the budget of each step, and that it keeps some. Estimated counts are not checked.

    Errors: `UserError`."""
    for one in found:
        flow, step = one.stage.flow, one.stage.step
        if one.mark == "~" or step is None:
            continue
        if flow.keep_pairs is not None and flow.keep_pairs > one.reached:
            raise exceeded(step, flow.keep_pairs, one.reached)
        if flow.keep_fraction is not None and one.reached and not one.left:
            raise UserError(
                f"selection.{step}.keep_fraction={flow.keep_fraction:g} keeps none of the {one.reached:,} pairs that "
                "reach the step; raise it"
            )


def plan_rows(found: Sequence[Reach]) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    return [(one.stage.name, one.stage.does, state(one.stage), _pairs(one), _samples(one)) for one in found]


def _pairs(one: Reach) -> str:
    # evaluation sets are not part of the pool
    return f"{one.mark}{one.left:,}" if one.stage.role != Role.EVALUATE else ""


def _samples(one: Reach) -> str:
    if one.samples is None:
        return ""
    return f"{'' if one.stage.flow.samples else one.mark}{one.samples:,}"


def state(stage: Stage) -> str:
    """Return `reused`, `resumes ...` with the finished parts or steps, or `to compute`."""
    if stage.artifact.is_complete():
        return "reused"
    if stage.trains:
        steps = steps_saved(stage.artifact)
        return f"resumes after step {steps:,}" if steps else "to compute"
    done = num_done(stage.artifact)
    return f"resumes, {done:,} parts done" if done else "to compute"


def num_pairs(source: Source, catalog: Catalog) -> tuple[int, bool]:
    """Return the number of pairs in the pool, and whether it is exact."""
    if catalog.artifact.is_complete():
        return sum(catalog.rows_per_part), True
    parts = source.parts()
    known = [part.num_rows for part in parts if part.num_rows is not None]
    if len(known) == len(parts):
        return sum(known), True
    return source.catalog(parts[0]).table.num_rows * len(parts), len(parts) == 1


def training_cost(found: Sequence[Reach], source: Source, catalog: Catalog) -> str | None:
    """Return a line that compares the samples of all phases with training on every pair; None without training."""
    total, exact = num_pairs(source, catalog)
    seen = sum(one.samples for one in found if one.samples is not None)
    most_epochs = max((one.stage.flow.epochs for one in found), default=0)
    if not seen:
        return None
    sign = "" if exact else "~"
    bound = "at most " if any(_samples(one).startswith("<") for one in found) else ""
    samples = f"samples seen: {bound}{sign}{seen:,}"
    if any(one.stage.flow.samples for one in found):
        return samples
    full = most_epochs * total
    return f"{samples}, {seen / full:.1%} of the {sign}{full:,} samples in {epochs(most_epochs)} on every pair"


def epochs(number: int) -> str:
    """Return the number with its unit."""
    return f"{number} epoch{'' if number == 1 else 's'}"
