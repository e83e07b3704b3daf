"""Group the members of a tar into samples, and the samples into the rows of a catalog.

A caption comes from the Parquet file beside the tar, else from a text member (`txt`, `text`, `caption`), else from the
`json` member. `source.caption_column` names one instead."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from orchestrator.source.captions import SEVERAL, caption_field, caption_text, is_blank, member_rank
from orchestrator.source.header import IMAGE_EXTENSIONS, LONG_PREFIX, PREFIX, WHOLE, image_size, is_image
from orchestrator.source.schema import CATALOG_SCHEMA, CaptionCounts, Problems, Status
from orchestrator.source.sidecar import Labels, Sidecar, labels_of
from orchestrator.source.tar import Member, read_member

logger = logging.getLogger(__name__)

# in bytes: a longer text or json member is not read
MAX_TEXT = 4 << 20


@dataclass(slots=True)
class _Sample:
    """A pair so far: whether the sidecar lists it (`is_known`), and with a caption (`has_caption`).

    `text` is the best caption of a text member: the one of the lowest `rank` that is not blank."""

    labels: Labels
    is_known: bool
    has_caption: bool
    extensions: dict[str, None] = field(default_factory=dict)
    text: str | None = None
    rank: int = 0
    numbered: int = 0
    text_from: str = ""
    json_from: str | None = None
    json_keys: tuple[str, ...] = ()
    image: Member | None = None
    is_bad: bool = False


class SampleWalk:
    """Collects the samples of a tar from its members."""

    def __init__(self, shard_name: str, sidecar: Sidecar, caption_column: str | None, problems: Problems) -> None:
        self.shard_name = shard_name
        self.sidecar = sidecar
        self.caption_column = caption_column
        self.problems = problems
        self.captions = CaptionCounts()
        self.samples: dict[str, _Sample] = {}
        self.last_key: str | None = None
        # the rank of every extension seen; None for those that hold no caption
        self.ranks: dict[str, int | None] = {}

    def add(self, file: IO[bytes], member: Member) -> None:
        """Add a member; reads its payload only if needed."""
        self.last_key, extension = member.key, member.extension
        sample = self.samples.get(member.key)
        if sample is None:
            known = self.sidecar.labels.get(member.key)
            has_caption = known is not None and not is_blank(known.caption)
            sample = self.samples[member.key] = _Sample(known or Labels(), known is not None, has_caption)
        if extension in sample.extensions:
            self.problems.add("duplicate_key", f"{self._name(member)}: a second {extension} member, ignored")
            return
        sample.extensions[extension] = None
        if extension in IMAGE_EXTENSIONS:
            self._add_image(file, member, sample)
            return
        if extension not in self.ranks:
            self.ranks[extension] = member_rank(extension, self.caption_column)
        rank = self.ranks[extension]
        if sample.has_caption:
            return
        if rank is not None:
            self._add_text(file, member, sample, rank)
        elif extension == "json":
            self._add_json(file, member, sample)

    def report(self, kind: str, name: str, text: str) -> None:
        """Count what the tar's reader leaves out; `name` is a member, or "" for the tar as a whole."""
        self.problems.add(kind, f"{self.shard_name}{name and '/'}{name}: {text}")

    def cut(self, member: Member | None) -> None:
        """Drop the sample that a truncated tar leaves incomplete."""
        # the first sample shows which members a complete sample has
        whole = next(iter(self.samples.values())).extensions.keys() if self.samples else set()
        if self.last_key is not None and (member or not whole <= self.samples[self.last_key].extensions.keys()):
            del self.samples[self.last_key]
        text = f"{self.shard_name}: truncated after {len(self.samples)} pairs"
        logger.warning("truncated shard: %s", text)
        self.problems.add("truncated_shard", text)

    def check_sidecar(self) -> None:
        """Count the rows of the sidecar that are not used: those of pairs that the tar does not have."""
        labels = self.sidecar.labels
        for key in self.sidecar.repeated:
            self.problems.add("duplicate_key", f"{self.shard_name}/{key}: a second row in its Parquet file, ignored")
        lost = [key for key in labels if key not in self.samples]
        if self.samples and labels and len(lost) == len(labels):
            self.problems.add(
                "unmatched_sidecar",
                f"{self.shard_name}: none of the {len(labels)} keys of its Parquet file is in the tar (keys there: "
                f"{next(iter(self.samples))!r}, ..., in the Parquet file: {lost[0]!r}, ...); the file is not used",
            )
            return
        for key in lost:
            self.problems.add("row_without_pair", f"{self.shard_name}/{key}: in its Parquet file, but not in the tar")

    def table(self, *, with_offsets: bool) -> pa.Table:
        """Return the samples as a catalog table; counts what is wrong with each."""
        samples = list(self.samples.values())
        captions = [self._caption(key, sample) for key, sample in self.samples.items()]
        pairs = zip(self.samples.items(), captions, strict=True)
        columns: dict[str, list[Any]] = {
            "key": list(self.samples),
            "caption": captions,
            "width": [one.labels.width for one in samples],
            "height": [one.labels.height for one in samples],
            "status": [self._status(key, sample, caption) for (key, sample), caption in pairs],
            "image_offset": [one.image.offset if one.image and with_offsets else None for one in samples],
            "image_size": [one.image.size if one.image else None for one in samples],
            "uid": [one.labels.uid for one in samples],
            "url": [one.labels.url for one in samples],
        }
        return pa.table(columns, schema=CATALOG_SCHEMA)

    def _add_image(self, file: IO[bytes], member: Member, sample: _Sample) -> None:
        if sample.image is not None:
            return
        sample.image = member
        if sample.is_known and sample.labels.width and sample.labels.height:
            return
        data = read_member(file, member, PREFIX)
        size = image_size(data)
        for limit in (LONG_PREFIX, WHOLE):
            if size is None and len(data) < member.size and is_image(data):
                data += read_member(file, member, limit, start=len(data))
                size = image_size(data)
        sample.is_bad = size is None
        sample.labels.width, sample.labels.height = size or (None, None)

    def _add_text(self, file: IO[bytes], member: Member, sample: _Sample, rank: int) -> None:
        text = self._text(file, member)
        if text is None:
            return
        if member.extension[0].isdigit():
            sample.numbered += 1
        # a blank caption says less than one with words; of two alike the lower rank wins
        if sample.text is None or (is_blank(text), rank) < (is_blank(sample.text), sample.rank):
            sample.text, sample.rank, sample.text_from = text, rank, member.extension

    def _add_json(self, file: IO[bytes], member: Member, sample: _Sample) -> None:
        fields = json_object(self._text(file, member) or "")
        if fields is None:
            self.problems.add("bad_json", f"{self._name(member)}: its json member is not an object")
            return
        sample.json_from = self._json_caption(fields)
        found = labels_of(fields, sample.json_from)
        sample.json_keys = () if found.caption else tuple(fields)
        labels = sample.labels
        labels.caption, labels.problem = found.caption, found.problem
        if not sample.is_known:
            labels.uid, labels.url = found.uid, found.url

    def _json_caption(self, fields: dict[str, Any]) -> str | None:
        caption = fields.get("caption")
        if self.caption_column is None and isinstance(caption, str) and not is_blank(caption):
            return "caption"
        # a value without words says less than another usual name with some
        filled = [name for name, value in fields.items() if not is_blank(caption_text(value)[0])]
        return caption_field(filled, self.caption_column) or caption_field(fields, self.caption_column)

    def _text(self, file: IO[bytes], member: Member) -> str | None:
        if member.size > MAX_TEXT:
            self.problems.add(
                "long_text", f"{self._name(member)}: its {member.extension} member has {member.size:,} bytes"
            )
            return None
        return self._decode(member, read_member(file, member)).removeprefix("\ufeff")

    def _decode(self, member: Member, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.problems.add("bad_utf8", f"{self._name(member)}: its {member.extension} member is not UTF-8")
            return data.decode(errors="replace")

    def _caption(self, key: str, sample: _Sample) -> str | None:
        """Return the sample's caption: of the sidecar, a text member or the JSON, the first that is not blank."""
        labels, name = sample.labels, f"{self.shard_name}/{key}"
        if not is_blank(sample.text):
            self.captions.taken[f"member {sample.text_from}"] += 1
            if sample.numbered > 1 and sample.text_from[0].isdigit():
                self.problems.add(SEVERAL, f"{name}: {sample.numbered} captions, the first is used")
            return sample.text
        if labels.problem is not None:
            self.problems.add(labels.problem, f"{name}: {labels.problem.replace('_', ' ')}")
        if not is_blank(labels.caption):
            is_json = sample.json_from is not None
            self.captions.taken[f"JSON {sample.json_from}" if is_json else f"sidecar {self.sidecar.caption}"] += 1
            return labels.caption
        self.captions.saw(sample.extensions, sample.json_keys)
        # img2dataset writes an empty txt member for a caption that its Parquet file lists as null
        hides = sample.is_known and self.sidecar.caption is not None
        return labels.caption if hides or sample.text is None else sample.text

    def _status(self, key: str, sample: _Sample, caption: str | None) -> Status:
        name = f"{self.shard_name}/{key}"
        if sample.image is None:
            self.problems.add("missing_image", f"{name}: no image{_instead(sample.extensions)}")
            return Status.MISSING_IMAGE
        if sample.is_bad:
            self.problems.add("bad_image", f"{name}: its {sample.image.extension} member has no readable image header")
            return Status.BAD_IMAGE
        if caption is None:
            self.problems.add("missing_caption", f"{name}: no caption")
            return Status.MISSING_CAPTION
        return Status.OK

    def _name(self, member: Member) -> str:
        return f"{self.shard_name}/{member.key}"


def _instead(extensions: dict[str, None]) -> str:
    dotted = next((one for one in extensions if "." in one and one.rpartition(".")[2] in IMAGE_EXTENSIONS), None)
    if dotted is None:
        return f" among its members {', '.join(f'.{one}' for one in list(extensions)[:8])}"
    return f" (a key ends at the first dot of a name, so the extension is {dotted!r}; expected names with one dot)"


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return the object in a JSON text; None if the text is damaged or holds something else."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
