"""The mask of usable pairs: the keep list that a selection starts from, and the one of the fine-tune epoch."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.keep_list import KeepList, pack
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.source import has_caption, has_image

logger = logging.getLogger(__name__)
VERSION = 1


def pool_mask_stage(
    store_uri: str, catalog: Catalog, *, has_images: bool, needs_caption: bool, among: Artifact | None = None
) -> Stage:
    """Keeps every pair with an image (every row of a table without images); with `needs_caption`, only pairs with a
    caption that is not blank; with `among`, only pairs on that keep list.

    Pairs without a caption reach the selection, where their score is the lowest; the fine-tune epoch does not use
    them."""
    artifact = Artifact.of(
        store_uri,
        "keep",
        version=VERSION,
        catalog=catalog.artifact,
        has_images=has_images,
        needs_caption=needs_caption,
        **({} if among is None else {"among": among}),
    )

    role = Role.CAPTIONED if needs_caption else Role.POOL
    does = "mark the pairs with " + (
        "an image and a caption" if needs_caption else "an image" if has_images else "a row"
    )
    usable = UsablePairs(catalog, has_images, needs_caption, among)
    build = BuildPoolMask(artifact, usable, role.value)
    return Stage(name=role.value, role=role, does=does, artifact=artifact, build=build)


@dataclass(frozen=True)
class BuildPoolMask:
    """Builds the mask."""

    artifact: Artifact
    usable: UsablePairs
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Writes the mask of every part."""
        PartsJob(self.artifact, part_rows(self.usable.catalog), self.make, name=self.name).build(display)
        totals = self.artifact.totals
        logger.info("%s: %d of %d pairs are usable", self.name, totals["kept"], totals["rows"])
        return self.artifact

    def make(self) -> UsablePairs:
        """The work on parts."""
        return self.usable


@dataclass(frozen=True)
class UsablePairs:
    """The work on one part: its bits of the mask."""

    catalog: Catalog
    has_images: bool
    needs_caption: bool
    among: Artifact | None

    def __call__(self, part: PartRows) -> PartResult:
        """The part's mask and counts."""
        table = self.catalog.table(part.index, ("status", "caption"))
        keep = pc.is_valid(table["status"])
        if self.has_images:
            keep = has_image(table["status"])
        if self.needs_caption:
            keep = pc.and_(keep, has_caption(table["caption"]))
        mask = keep.to_numpy(zero_copy_only=False) if isinstance(keep, pa.Array) else keep.to_numpy()
        return pack(mask if self.among is None else mask & KeepList(self.among).mask(part.index, part.num_rows))
