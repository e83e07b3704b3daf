"""The mask of usable pairs: the keep list that a selection starts from, and the one of the fine-tune epoch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.keep_list import KeepList, pack
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, build_parts
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.source import Status

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

    def build(display: Display) -> Artifact:
        work = partial(UsablePairs, catalog, has_images, needs_caption, among)
        build_parts(artifact, part_rows(catalog), work, display=display, name=role.value)
        logger.info("%s: %d of %d pairs are usable", role.value, artifact.totals["kept"], artifact.totals["rows"])
        return artifact

    role = Role.CAPTIONED if needs_caption else Role.POOL
    does = "mark the pairs with " + (
        "an image and a caption" if needs_caption else "an image" if has_images else "a row"
    )
    return Stage(name=role.value, role=role, does=does, artifact=artifact, build=build)


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
            unusable = pa.array([Status.MISSING_IMAGE, Status.BAD_IMAGE], pa.int8())
            keep = pc.invert(pc.is_in(table["status"], value_set=unusable))
        if self.needs_caption:
            num_chars = pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(table["caption"], "")))
            keep = pc.and_(keep, pc.greater(num_chars, 0))
        mask = keep.to_numpy(zero_copy_only=False) if isinstance(keep, pa.Array) else keep.to_numpy()
        return pack(mask if self.among is None else mask & KeepList(self.among).mask(part.index, part.num_rows))
