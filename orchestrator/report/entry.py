"""What every part of `report.json` is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """A part of the report: immutable; numbers that are not finite become null in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(Entry):
    """A pair shown: `part` and `row` are its place in the catalog; `key` and `caption` as there, the caption cut short;
    `score` is what put it here, null where nothing did: among kept and pruned examples the step's score, among a
    cluster's pairs the distance from the centroid, among duplicates the cosine to the nearest earlier pair."""

    part: int
    row: int
    key: str
    caption: str
    score: float | None
