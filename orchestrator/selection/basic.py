"""DataComp's basic filter as a stage: caption length, image size and aspect, and language where a model is given."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import BasicStep
from orchestrator.data.catalog import Catalog, PartRows
from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.filters import Reason, basic_reasons, languages, load_language_model
from orchestrator.selection.filter import Rule, Verdict, filter_stage
from orchestrator.storage import files


def stages(step: Step) -> list[Stage]:
    """The keep list; the catalog knows all it needs."""
    settings = step.settings
    assert isinstance(settings, BasicStep)
    if settings.language_model is not None and not files.is_path(settings.language_model):
        raise UserError(
            f"selection.{step.name}.language_model: no such file {settings.language_model}; "
            f"expected fastText's lid.176.bin"
        )
    speaks = f", language {settings.language}" if settings.language_model else ""
    return [
        filter_stage(
            step,
            partial(_rule, step.catalog, settings),
            does=f"drop short captions, small and elongated images{speaks}",
            loads=settings.language_model is not None,
            settings=settings.model_dump(),
        )
    ]


def _rule(catalog: Catalog, settings: BasicStep) -> Rule:
    model = load_language_model(settings.language_model) if settings.language_model else None

    def rule(part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        table = catalog.table(part.index, ("caption", "width", "height")).take(rows)
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
        if model is not None:
            passing = reasons == Reason.PASSES
            foreign = (languages(captions.filter(passing), model) != settings.language).to_numpy()
            reasons[np.flatnonzero(passing)[foreign]] = Reason.OTHER_LANGUAGE
        told = {reason.name.lower(): int((reasons == reason).sum()) for reason in Reason if reason != Reason.PASSES}
        return Verdict(reasons == Reason.PASSES, told)

    return rule
