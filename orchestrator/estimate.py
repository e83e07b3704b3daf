"""The plan: for each stage what it will do, whether it is there, over how many pairs, and how many samples it trains
on."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.catalog import Catalog
from orchestrator.keeplist import KeepList
from orchestrator.parts import num_done
from orchestrator.pruning.cut import budget
from orchestrator.source import Source
from orchestrator.stage import Stage

COLUMNS = ("stage", "what it does", "state", "pairs", "samples")


def plan_rows(stages: Sequence[Stage], source: Source, catalog: Catalog) -> list[tuple[str, ...]]:
    """The table's rows; counts are exact where the catalog is there, else estimated from the first shard (`~`). What a
    filter leaves is known once it is computed; until then it is at most what reaches it (`<`)."""
    total, exact = num_pairs(source, catalog)
    sign, left = "" if exact else "~", total
    rows: list[tuple[str, ...]] = []
    for stage in stages:
        if stage.keep_pairs is not None:
            left = min(left, stage.keep_pairs)
        elif stage.keep_fraction is not None:
            left = budget(left, stage.keep_fraction)
        elif stage.is_filter:
            known = stage.artifact.is_complete()
            left, sign = (KeepList(stage.artifact).num_pairs, "") if known else (left, "<")
        whole = stage.on_whole_pool or stage.artifact == catalog.artifact
        pairs, mark = (total, "" if exact else "~") if whole else (left, sign)
        samples = _samples(stage, pairs, mark)
        rows.append((stage.name, stage.does, state(stage), f"{mark}{pairs:,}", samples))
    return rows


def _samples(stage: Stage, pairs: int, mark: str) -> str:
    if stage.samples is not None:
        return f"{stage.samples:,}"
    return f"{mark}{pairs * stage.epochs:,}" if stage.epochs else ""


def state(stage: Stage) -> str:
    """`reused`, `resumes` with the parts that are done, or `to compute`."""
    if stage.artifact.is_complete():
        return "reused"
    done = num_done(stage.artifact)
    return f"resumes, {done:,} parts done" if done else "to compute"


def num_pairs(source: Source, catalog: Catalog) -> tuple[int, bool]:
    """The pairs of the pool, and whether that is exact."""
    if catalog.artifact.is_complete():
        return sum(catalog.rows_per_part), True
    parts = source.parts()
    known = [part.num_rows for part in parts if part.num_rows is not None]
    if len(known) == len(parts):
        return sum(known), True
    return source.catalog(parts[0]).table.num_rows * len(parts), len(parts) == 1


def training_cost(stages: Sequence[Stage], source: Source, catalog: Catalog) -> str | None:
    """A sentence on the samples that the phases see, against training as long on everything."""
    total, exact = num_pairs(source, catalog)
    rows = plan_rows(stages, source, catalog)
    seen = sum(int(row[-1].lstrip("~<").replace(",", "")) for row in rows if row[-1])
    epochs = max((stage.epochs for stage in stages), default=0)
    if not seen:
        return None
    sign = "" if exact else "~"
    bound = "at most " if any(row[-1].startswith("<") for row in rows) else ""
    return (
        f"samples seen: {bound}{sign}{seen:,}, {seen / (epochs * total):.1%} of the {sign}{epochs * total:,} "
        f"that {epochs} epochs on every pair take"
    )
