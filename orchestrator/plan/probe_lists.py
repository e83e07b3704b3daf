"""What was brought along, cut down for a probe: the first rows of a list, as it is.

They need not be those of the pairs that are drawn, so few may match: what a join leaves in the store is measured low,
what it takes is not, as both sides are sorted and compared whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from orchestrator.config import Config, KeepListStep
from orchestrator.config.embedding import EncoderConfig
from orchestrator.data.external_list import ExternalList, Piece
from orchestrator.embedding.precomputed_files import open_brought
from orchestrator.selection.keep_list import open_list


@dataclass(frozen=True)
class FirstRows(ExternalList):
    """A list's first piece."""

    def pieces(self) -> list[Piece]:
        """The first; Errors: as of the whole."""
        return super().pieces()[:1]

    def identity(self) -> dict[str, Any]:
        """The whole's, of which it is the beginning."""
        return {**super().identity(), "rows": "first"}


def first_rows(whole: ExternalList) -> FirstRows:
    """Of the first file alone, whose footer is all that is read beforehand."""
    first = replace(whole, files=whole.files[:1])
    return FirstRows(first.files, first.match_by, first.match_column, first.setting)


def lists_of(config: Config) -> dict[str, ExternalList]:
    """What a run joins with its pool, by the label of the stages: embeddings and keep lists."""
    found: dict[str, ExternalList] = {}
    for name in config.selection.steps:
        step, embedding = config.selection.settings[name], config.selection.embedding_of(name)
        if embedding is not None and not isinstance(settings := config.embedding[embedding], EncoderConfig):
            found[embedding] = open_brought(settings, embedding).foreign
        if isinstance(step, KeepListStep):
            found[name] = open_list(step, name)
    return found
