"""Small pools for the tests of the pipeline: tars as img2dataset writes them, with broken members on demand, Parquet
with images, caption tables, evaluation sets, and an experiment with a model that trains in seconds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.config import Config, parse
from orchestrator.data.catalog import Catalog, catalog_stage, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import part_path
from orchestrator.engine.stage import Stage
from orchestrator.selection import selection_stages
from orchestrator.source import CATALOG_SCHEMA, Source, Status, open_source
from orchestrator.storage import files as store

DEMO_TABLE = Path(__file__).parents[2] / "orchestrator" / "demo" / "pool" / "train.parquet"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230), "yellow": (230, 220, 40)}
SHAPES = ("square", "stripe")
ODD_CAPTIONS = (
    "Caf\u00e9 cr\u00e8me &amp; croissants",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; brave",
    "\u65e5\u672c\u306e\u732b \u732b",
    "na\u00c3\u00afve mojibake caf\u00c3\u00a9",
    "\u0130stanbul DON'T 2024!!",
    "\ufb01ne ligature \u2019tis",
    "",
    None,
    "   ",
    "\u00a0",
    "word " * 1000,
    "\U0001f600\U0001f600 smile",
    "&eacute;t&#233; &#x1F600;",
    "\u00df\u1e9e Stra\u00dfe",
    "a\u0301 combining",
)
TINY_EXPERIMENT = """# @package _global_
name: tiny
selection: {steps: [wfpp], wfpp: {keep_fraction: 0.75, min_count: 2}}
model:
  name: null
  context_length: null
  config:
    embed_dim: 16
    vision_cfg: {image_size: 32, patch_size: 16, layers: 1, width: 32, head_width: 16}
    text_cfg: {context_length: 12, vocab_size: 49408, width: 16, heads: 2, layers: 1}
training: {epochs: 2, global_batch_size: 16, lr: 1.0e-3, warmup_steps: 2, precision: fp32, lanes: 4, window: 16,
           checkpoint_every_steps: 4, log_every_steps: 1, num_workers: 1}
finetune: {epochs: 1, lr: 1.0e-4, warmup_epochs: 0.1}
"""
TINY_MODEL = {
    "name": None,
    "config": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
}


@dataclass(frozen=True)
class Pair:
    """A pair as it lies in a shard; a caption or an image that is `None` has no member."""

    key: str
    caption: str | None
    image: bytes | None


def picture(number: int, *, size: tuple[int, int] = (40, 34), kind: str = "JPEG") -> bytes:
    """A coloured square or stripe on noise, encoded; what it shows follows from `number % 8`."""
    width, height = size
    pixels = np.random.default_rng(number).integers(200, 255, (height, width, 3), dtype=np.uint8)
    colour, shape = kind_of(number)
    top, bottom = (height // 4, 3 * height // 4) if shape == "square" else (0, height)
    pixels[top:bottom, width // 4 : 3 * width // 4] = COLOURS[colour]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def kind_of(number: int) -> tuple[str, str]:
    """The colour and the shape of a picture."""
    return list(COLOURS)[number % 4], SHAPES[number // 4 % 2]


def caption(number: int) -> str:
    """What a picture shows; the first words are common, every fifth caption is of common words alone."""
    colour, shape = kind_of(number)
    return f"a photo of a {shape}" if number % 5 == 0 else f"a {colour} {shape} number {number}"


def make_pairs(num_pairs: int, *, kind: str = "JPEG") -> list[Pair]:
    """Whole pairs with keys 000000000, 000000001, ..."""
    return [Pair(f"{i:09d}", caption(i), picture(i, kind=kind)) for i in range(num_pairs)]


def torn(image: bytes) -> bytes:
    """An image whose header is whole, so that only decoding finds it broken."""
    return image[: len(image) // 2]


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims, and would decode to, 400 million pixels."""
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


def split(pairs: Sequence[Pair], num_shards: int) -> list[list[Pair]]:
    """The pairs in order, cut into as many shards."""
    return [[pairs[i] for i in chunk] for chunk in np.array_split(np.arange(len(pairs)), num_shards)]


def write_tars(folder: Path, pairs: Sequence[Pair], *, num_shards: int = 1, compressed: bool = False) -> str:
    """Writes tars and gives their URI, a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ending, mode = (".tar.gz", "w:gz") if compressed else (".tar", "w")
    for number, members in enumerate(split(pairs, num_shards)):
        with tarfile.open(folder / f"{number:05d}{ending}", mode) as tar:  # type: ignore[call-overload]
            for pair in members:
                for extension, data in (("jpg", pair.image), ("txt", pair.caption and pair.caption.encode())):
                    if data is not None:
                        add(tar, f"{pair.key}.{extension}", data)
    return str(folder)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_parquet_images(folder: Path, pairs: Sequence[Pair], *, num_shards: int = 1) -> str:
    """img2dataset's `parquet` output."""
    folder.mkdir(parents=True)
    for number, members in enumerate(split(pairs, num_shards)):
        columns = {
            "key": [p.key for p in members],
            "caption": [p.caption for p in members],
            "jpg": pa.array([p.image for p in members], pa.binary()),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet")
    return str(folder)


def write_table(folder: Path, captions: Sequence[str | None], *, num_files: int = 1) -> str:
    """A caption table with an address a row, in one file or several."""
    folder.mkdir(parents=True)
    for number, chunk in enumerate(np.array_split(np.arange(len(captions)), num_files)):
        columns = {"url": [f"http://pictures.example/{i}" for i in chunk], "caption": [captions[i] for i in chunk]}
        pl.DataFrame(columns, schema={"url": pl.String, "caption": pl.String}).write_parquet(
            folder / f"{number:05d}.parquet"
        )
    return str(folder)


def real_captions(num_captions: int) -> list[str | None]:
    """Captions of the shipped pool with the odd ones strewn in, the same on every call."""
    captions: list[str | None] = list(pl.read_parquet(DEMO_TABLE, columns=["caption"])["caption"][:num_captions])
    for number, odd in enumerate(ODD_CAPTIONS):
        captions.insert(number * num_captions // len(ODD_CAPTIONS), odd)
    return captions


def write_catalog(folder: Path, pairs: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> Catalog:
    """A catalog of the given pairs in parts of the given sizes."""
    assert sum(rows) == len(pairs)
    artifact = Artifact.of(str(folder), "catalog", version=1, rows=list(rows))
    parts, first = [], 0
    for index, num_rows in enumerate(rows):
        told = [{"status": Status.OK, **pair} for pair in pairs[first : first + num_rows]]
        store.write(
            part_path(artifact, index, "parquet"), to_parquet(pa.Table.from_pylist(told, schema=CATALOG_SCHEMA))
        )
        parts.append({"index": index, "rows": num_rows})
        first += num_rows
    artifact.publish(totals={}, parts=parts, seconds=0)
    return Catalog(artifact)


def write_zero_shot(folder: Path, numbers: Iterable[int] = range(16)) -> Path:
    """`zs.tar` of eight classes, with its class names beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "zs.tar", "w") as tar:
        for number in numbers:
            add(tar, f"{number:05d}.jpg", picture(number))
            add(tar, f"{number:05d}.cls", str(number % 8).encode())
    names = [" ".join(kind_of(number)) for number in range(8)]
    (folder / "zs.classnames.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "zs.tar"


def write_experiment(folder: Path) -> Path:
    """A folder for `--config-dir` with `+exp=tiny`."""
    (folder / "exp").mkdir(parents=True)
    (folder / "exp" / "tiny.yaml").write_text(TINY_EXPERIMENT)
    return folder


def config_of(source: dict[str, Any], store: Path, **groups: dict[str, Any]) -> Config:
    """A configuration of the defaults but for what is given."""
    empty = {name: {} for name in ("embedding", "model", "training", "finetune", "evaluation", "tracking", "cluster")}
    selection = {"steps": ["wfpp"], "wfpp": {}}
    return parse({**empty, "selection": selection, "source": source, "store": str(store), **groups})


@dataclass(frozen=True)
class Selected:
    """What a selection came to, with all that it was made of."""

    source: Source
    catalog: Catalog
    stages: list[Stage]

    @property
    def keep(self) -> KeepList:
        """The last step's keep list."""
        return KeepList(self.stages[-1].artifact)

    def ordinals(self, stage: int = -1) -> list[int]:
        """Global ordinals of the pairs that a stage keeps, ascending."""
        keep = KeepList(self.stages[stage].artifact)
        masks = [keep.mask(index, rows) for index, rows in enumerate(self.catalog.rows_per_part)]
        return np.flatnonzero(np.concatenate(masks)).tolist()


def build_selection(config: Config) -> Selected:
    """Builds what is missing from the catalog to the final keep list."""
    source = open_source(config.source)
    read = catalog_stage(config.store, source, config.source.limits)
    catalog = Catalog(read.artifact)
    stages = [read, *selection_stages(config, source, catalog)]
    for stage in stages:
        if not stage.artifact.is_complete():
            stage.build(Display())
    return Selected(source, catalog, stages)
