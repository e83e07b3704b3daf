"""The kept pairs as WebDataset shards: one tar for each part, in a folder with a file that names the keep list."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import xxhash

from orchestrator.engine.artifact_files import read_json
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult
from orchestrator.errors import UserError
from orchestrator.export.kept import Kept, build_kept
from orchestrator.source import Part
from orchestrator.source.tar import split_name
from orchestrator.source.webdataset import ENDINGS
from orchestrator.storage import files

# the file that names the keep list stays in the folder; the marks of finished parts are removed at the end
OWNER, MARKS = "_export.json", "_export"
COLUMNS = ("key", "caption", "width", "height", "status", "image_offset", "image_size", "uid", "url")
# the first two bytes of each format that is decoded
MAGIC = {
    b"\xff\xd8": "jpg",
    b"\x89P": "png",
    b"RI": "webp",
    b"GI": "gif",
    b"BM": "bmp",
    b"II": "tif",
    b"MM": "tif",
    b"\0\0": "avif",
}


def export_shards(kept: Kept, parts: Sequence[Part], to: str, display: Display) -> None:
    """Write the folder. Errors: `UserError` for a source without images, or a folder with tars of something else."""
    if not kept.source.has_images:
        raise UserError(
            f"to={to}: shards need images, and a caption table has none; export to .parquet and download the kept "
            "pairs with img2dataset"
        )
    _claim(to, kept.keep.artifact.fingerprint, {_shard_name(part) for part in parts})
    build_kept(kept, parts, files.join(to, MARKS), partial(KeptShard, kept, to), display)
    files.remove(files.join(to, MARKS))


def _shard_name(part: Part) -> str:
    return f"{part.index:05d}.tar"


def _claim(to: str, keep: str, ours: set[str]) -> None:
    # the tars of two keep lists in one folder would form a pool that fits neither list
    owner, names = files.join(to, OWNER), files.names(to)
    tars = {name for name in names if name.lower().endswith(ENDINGS)}
    is_ours = OWNER in names and read_json(owner, remedy="empty the folder or choose another one")["keep"] == keep
    others = sorted(tars - ours if is_ours else tars)
    if others:
        raise UserError(
            f"to={to}: got a folder with tars that no export of this keep list wrote ({len(others)}: "
            f"{', '.join(others[:3])}); empty the folder or choose another one"
        )
    files.write_json(owner, {"keep": keep})


@dataclass(frozen=True)
class KeptShard:
    """Write the tar of one part to the folder `to`."""

    kept: Kept
    to: str

    def __call__(self, part: Part) -> PartResult:
        """Write the tar. The result has no files of its own."""
        numbers, rows = self.kept.rows(part.index, COLUMNS)
        # a part without kept pairs is not read: its file may be damaged
        images = self.kept.source.images(part, rows) if len(numbers) else iter(())
        buffer, taken = io.BytesIO(), set[str]()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row, pair, image in zip(part.first_row + numbers, rows.to_pylist(), images, strict=True):
                name = _unique(_member_name(pair["key"]), row, taken)
                taken.add(name)
                _add_sample(tar, name, pair, image)
        files.write(files.join(self.to, _shard_name(part)), buffer.getvalue())
        return PartResult({}, {"kept": rows.num_rows})


def _member_name(key: str) -> str:
    # a name must stay inside the folder when the shard is unpacked, and a reader must get the same key from it: the key
    # of a member ends at the first dot of its last component, and a NUL ends the name. Other keys are replaced by a
    # hash; the JSON file of the sample has the original key
    leads_out = {"", ".", ".."} & set(key.split("/"))
    is_readable = split_name(f"{key}.txt") == (key, "txt") and "\0" not in key
    return key if is_readable and not leads_out else xxhash.xxh3_64_hexdigest(key.encode())


def _unique(name: str, row: int, taken: set[str]) -> str:
    if name in taken:
        name = f"{name}_{row}"
    # the name may itself be the key of another pair
    while name in taken:
        name += "_"
    return name


def _add_sample(tar: tarfile.TarFile, name: str, pair: dict[str, Any], image: bytes | None) -> None:
    facts = {field: pair[field] for field in ("key", "caption", "width", "height", "uid", "url")}
    members = {"txt": (pair["caption"] or "").encode(), "json": json.dumps(facts).encode()}
    if image is not None:
        members = {MAGIC.get(image[:2], "jpg"): image, **members}
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{name}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
