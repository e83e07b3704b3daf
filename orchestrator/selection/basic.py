"""DataComp's basic filter as a stage: caption length, image size and aspect, and language where a model is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import BasicStep
from orchestrator.data.catalog import Catalog, PartRows
from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.filters import Reason, basic_reasons, languages, load_language_model
from orchestrator.selection.filter import Verdict, filter_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn
from orchestrator.storage import files


def stages(step: Step) -> list[Stage]:
    """The keep list; it needs nothing but the catalog. Errors: `UserError` for a language model that does not exist."""
    settings = step.settings
    assert isinstance(settings, BasicStep)
    if settings.language_model is not None and not files.is_path(settings.language_model):
        raise UserError(
            f"selection.{step.name}.language_model: no such file {settings.language_model}; "
            f"expected fastText's lid.176.bin"
        )
    language = f", keep language {settings.language}" if settings.language_model else ""
    return [
        filter_stage(
            step,
            partial(BasicRule.load, step.catalog, settings),
            does=f"drop short captions, small and elongated images{language}",
            loads=settings.language_model is not None,
            settings=settings.model_dump(),
        )
    ]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """None: the filter has several limits and no score."""
    return None


@dataclass(frozen=True)
class BasicRule:
    """The filter on the pairs of a part; `language_model` is fastText's, or None."""

    catalog: Catalog
    settings: BasicStep
    language_model: Any

    @classmethod
    def load(cls, catalog: Catalog, settings: BasicStep) -> BasicRule:
        """Loads the language model, if the settings name one."""
        path = settings.language_model
        return cls(catalog, settings, load_language_model(path) if path else None)

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        """The verdict on the given rows: the first reason that applies is counted."""
        settings = self.settings
        table = self.catalog.table(part.index, ("caption", "width", "height")).take(rows)
        captions = pl.Series(table["caption"], dtype=pl.String)
        reasons = basic_reasons(
            captions,
            pl.Series(table["width"]),
            pl.Series(table["height"]),
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
        return Verdict(reasons == Reason.PASSES, counts)
