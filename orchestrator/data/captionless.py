"""The limit on pairs without a caption, for runs that read captions. Without it, a run on a pool in which no
caption was found would train on nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import Limits
from orchestrator.engine.parts import Summary, sums
from orchestrator.errors import UserError
from orchestrator.source import PartCatalog, has_caption, has_image

# problems of pairs that no stage uses, with or without a caption
UNUSABLE = ("missing_image", "bad_image")
NAMES_SHOWN = 8


def caption_summary(catalog: PartCatalog) -> dict[str, Any]:
    """Return what a part's summary keeps on captions.

    `captionless` is the number of usable pairs without a caption, `captions_from` the number of pairs by what holds
    their caption, and `seen` what the pairs without a caption have instead."""
    table = catalog.table
    missing = pc.and_(has_image(table["status"]), pc.invert(has_caption(table["caption"])))
    return {
        "captionless": pc.sum(missing.cast(pa.int64())).as_py() or 0,
        "captions_from": dict(catalog.captions.taken),
        "seen": dict(catalog.captions.seen),
    }


def check_captions(limits: Limits, summaries: Sequence[Summary], reader: str | None) -> None:
    """Check the share of usable pairs without a caption. `reader` names what reads captions; None: nothing does.

    Errors: `UserError` that names what those pairs have instead."""
    totals = sums(summaries)
    problems = totals.get("problems", {})
    usable = totals.get("rows", 0) - sum(problems.get(kind, 0) for kind in UNUSABLE)
    # a catalog of an earlier version has no count of its own
    missing = totals.get("captionless", problems.get("missing_caption", 0))
    if reader is None or missing <= limits.max_captionless * usable:
        return
    raise UserError(
        f"{missing:,} of {usable:,} pairs have no caption, at most {limits.max_captionless:.1%} allowed, and {reader} "
        f"reads captions; {_seen(totals.get('seen', {}))}; set source.caption_column to what holds the captions, or "
        "raise source.limits.max_captionless"
    )


def _seen(seen: dict[str, int]) -> str:
    # the most frequent first; the order of the dictionary is lost in the manifest
    common = sorted(seen, key=lambda name: (-seen[name], name))
    members = [name for name in common if name.startswith(".")][:NAMES_SHOWN]
    keys = [name.removeprefix("JSON ") for name in common if not name.startswith(".")][:NAMES_SHOWN]
    found = [f"{what} {', '.join(names)}" for what, names in (("members", members), ("JSON keys", keys)) if names]
    return f"these pairs have {' and '.join(found)}" if found else "the captions there are null or blank"
