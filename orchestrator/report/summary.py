"""The headline numbers, shown at the top of the page and in the command's last table."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.engine.stopwatch import duration
from orchestrator.report.schema import Report


@dataclass(frozen=True)
class Headline:
    """A number with its label, and a note to compare it with."""

    label: str
    value: str
    note: str = ""


def headlines(report: Report) -> list[Headline]:
    """Return two to five headlines, depending on the verb."""
    rows: list[Headline] = []
    if report.steps:
        pool, kept = report.steps[0].pairs_in, report.steps[-1].pairs_out
        rows.append(Headline("kept", f"{kept / max(1, pool):.1%}", f"{kept:,} of {pool:,} pairs"))
    if report.words is not None:
        before, after = report.words.before, report.words.after
        rows.append(
            Headline(
                "words left",
                f"{after.distinct / max(1, before.distinct):.1%}",
                f"{after.distinct:,} of {before.distinct:,} distinct",
            )
        )
    if report.cost is not None:
        cost = report.cost
        rows.append(
            Headline(
                "samples seen",
                f"{cost.samples_fraction:.0%}",
                f"{cost.samples_seen:,} of {cost.full_samples:,} in full training",
            )
        )
    rows += _results(report)
    num_stages = len(report.stages)
    stages = f"{num_stages} stage{'s' if num_stages > 1 else ''}"
    return [*rows, Headline("wall time", duration(report.wall_seconds), stages)][:5]


def _results(report: Report) -> list[Headline]:
    if report.not_evaluated is not None:
        return [Headline("evaluation", "failed")]
    if not report.evaluation:
        return []
    last = list(report.evaluation.values())[-1]
    rows = []
    if last.zero_shot is not None:
        chance = 1 / last.zero_shot.num_classes
        rows.append(Headline("zero-shot top-1", f"{last.zero_shot.top1:.1%}", f"chance {chance:.2%}"))
    if last.retrieval is not None and not report.steps:
        rows.append(
            Headline(
                "image to text R@1",
                f"{last.retrieval['image_to_text_recall_at_1']:.1%}",
                f"{last.retrieval['num_pairs']:,.0f} pairs",
            )
        )
    return rows
