"""The base class of all parts of `report.json`, and an example pair."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """A part of the report. Immutable; numbers that are not finite become null in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(Entry):
    """A pair to show: its `part` and `row` in the catalog, its `key`, and its `caption`, which may be shortened.

    `score` depends on the section: the step's score among kept and pruned examples, the distance from the centroid in a
    cluster, the cosine to the nearest earlier pair among duplicates; null if there is none."""

    part: int
    row: int
    key: str
    caption: str
    score: float | None
