"""DataComp's basic filter as a stage: caption length, image size and aspect, and language where a model is given.

The sizes are those of the image on the web, as in DataComp: `original_width` and `original_height` of the metadata.
Pairs without them are filtered by the size of the stored image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import BasicStep
from orchestrator.data.catalog import Catalog, PartRows
from orchestrator.data.fields import ORIGINAL_SIZE, Fields, fields_stage, preferred
from orchestrator.data.step import Step
from orchestrator.engine.parts import Summary, sums
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.filters import Reason, basic_reasons, languages, load_language_model
from orchestrator.selection.filter import Verdict, filter_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn
from orchestrator.storage import files

STORED_SIZE = ("width", "height")


def stages(step: Step) -> list[Stage]:
    """The original sizes, and the keep list. Errors: `UserError` for a language model that does not exist."""
    settings = step.settings
    assert isinstance(settings, BasicStep)
    if settings.language_model is not None and not files.is_path(settings.language_model):
        raise UserError(
            f"selection.{step.name}.language_model: no such file {settings.language_model}; "
            f"expected fastText's lid.176.bin"
        )
    language = f", keep language {settings.language}" if settings.language_model else ""
    sizes = fields_stage(step.store_uri, step.source, step.catalog, ORIGINAL_SIZE, step=step.name)
    return [
        sizes,
        filter_stage(
            step,
            partial(BasicRule.load, step.catalog, Fields(sizes.artifact), settings),
            does=f"drop short captions, small and elongated images{language}",
            loads=settings.language_model is not None,
            check=partial(check_sizes, step.name),
            settings=settings.model_dump(),
            original_sizes=sizes.artifact,
        ),
    ]


def check_sizes(step: str, summaries: list[Summary]) -> None:
    """Raise `UserError` if every pair was dropped and no size was known."""
    totals = sums(summaries)
    reasons = totals.get("reasons", {})
    if not totals.get("kept") and reasons.get("size_unknown") and not sum(totals["sizes"].values()):
        raise UserError(
            f"selection.{step}: none of the {totals['reached']:,} pairs has a size; expected width and height, or "
            "original_width and original_height, in the metadata (columns, or JSON members of tars); without sizes, "
            "take the step out of selection.steps"
        )


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """None: the filter has several limits and no score."""
    return None


@dataclass(frozen=True)
class BasicRule:
    """The filter on the pairs of a part; `language_model` is fastText's, or None."""

    catalog: Catalog
    original: Fields
    settings: BasicStep
    language_model: Any

    @classmethod
    def load(cls, catalog: Catalog, original: Fields, settings: BasicStep) -> BasicRule:
        """Loads the language model, if the settings name one."""
        path = settings.language_model
        try:
            return cls(catalog, original, settings, load_language_model(path) if path else None)
        except (ValueError, ModuleNotFoundError) as error:
            raise UserError(
                f"selection.basic.language_model={path}: {error}; expected fastText's lid.176.bin"
            ) from error

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        """The verdict on the given rows: the first reason that applies is counted."""
        settings = self.settings
        table = self.catalog.table(part.index, ("caption", "width", "height")).take(rows)
        original = self.original.table(part.index, rows)
        (width, height), is_original = preferred(original, table, tuple(zip(ORIGINAL_SIZE, STORED_SIZE, strict=True)))
        captions = pl.Series(table["caption"], dtype=pl.String)
        reasons = basic_reasons(
            captions,
            pl.Series(width),
            pl.Series(height),
            min_words=settings.min_words,
            min_chars=settings.min_chars,
            min_side=settings.min_side,
            max_aspect=settings.max_aspect,
        )
        if self.language_model is not None:
            passing = reasons == Reason.PASSES
            spoken = languages(captions.filter(passing), self.language_model)
            reasons[np.flatnonzero(passing)[(spoken != settings.language).to_numpy()]] = Reason.OTHER_LANGUAGE
        counts = {reason.name.lower(): int((reasons == reason).sum()) for reason in Reason if reason != Reason.PASSES}
        has_stored = table["width"].is_valid().to_numpy() & table["height"].is_valid().to_numpy()
        sizes = {"original": int(is_original.sum()), "stored": int((has_stored & ~is_original).sum())}
        return Verdict(reasons == Reason.PASSES, counts, {"sizes": sizes})
