"""The pool as a keep list: every pair that there is something to do with. Where each selection begins, and what the
fine-tune epoch sees."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.keep_list import KeepList, pack
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.source import has_image

VERSION = 1


def valid_stage(
    store_uri: str, catalog: Catalog, *, has_images: bool, needs_caption: bool, among: Artifact | None = None
) -> Stage:
    """Keeps every pair with an image (any row of a table without images); with `needs_caption`, only those with words;
    with `among`, only those of that keep list.

    Captionless pairs reach the selection, where their score is the lowest; the fine-tune epoch leaves them out."""
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
        work = partial(_work, catalog, has_images, needs_caption, among)
        return build_parts(artifact, part_rows(catalog), work, display=display, name=role.value)

    role = Role.CAPTIONED if needs_caption else Role.POOL
    does = "mark the pairs with " + (
        "an image and a caption" if needs_caption else "an image" if has_images else "a row"
    )
    return Stage(name=role.value, role=role, does=does, artifact=artifact, build=build)


def _work(catalog: Catalog, has_images: bool, needs_caption: bool, among: Artifact | None) -> Work:
    def work(part: PartRows) -> PartResult:
        table = catalog.table(part.index, ("status", "caption"))
        keep = pc.is_valid(table["status"])
        if has_images:
            keep = has_image(table["status"])
        if needs_caption:
            words = pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(table["caption"], "")))
            keep = pc.and_(keep, pc.greater(words, 0))
        mask = keep.to_numpy(zero_copy_only=False) if isinstance(keep, pa.Array) else keep.to_numpy()
        return pack(mask if among is None else mask & KeepList(among).mask(part.index, part.num_rows))

    return work
