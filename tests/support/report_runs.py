"""A small pool with hostile captions, `select` runs over it, and written phases and evaluations."""

from __future__ import annotations

import io
import json
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator import pipeline
from orchestrator.config import Config, parse
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.storage import files

HOSTILE = (
    "<script>document.title = 'owned'</script> a beach",
    "<img src=x onerror=\"document.title='owned'\"> a boat",
    "\"' onmouseover='document.title=1' </style></pre></figure> a quote",
)
CAPTIONS = [*["a photo of a dog"] * 20, *["a cat on a mat"] * 8, *HOSTILE, "a zebra & a heron", None, "a torn picture"]
TORN = len(CAPTIONS) - 1
LOGGED_STEPS = 1200
DEFAULT_GROUPS = ("embedding", "model", "training", "finetune", "evaluation", "tracking", "cluster")


class Elements(HTMLParser):
    """Collects the name and attributes of every element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add an element."""
        self.found.append((tag, dict(attrs)))


def select(source: dict[str, Any], selection: dict[str, Any], out: Path, **groups: dict[str, Any]) -> RunRecord:
    """Run `select` and return its record."""
    pipeline.select(config_of(source, selection, out, **groups))
    return RunRecord.read(str(out / "out"))


def config_of(source: dict[str, Any], selection: dict[str, Any], out: Path, **groups: dict[str, Any]) -> Config:
    """Return a default configuration with this source, selection, paths and other groups."""
    defaults: dict[str, Any] = {group: {} for group in DEFAULT_GROUPS}
    return parse(
        {
            **defaults,
            **groups,
            "name": "a <b>run</b>",
            "source": source,
            "selection": selection,
            "out": str(out / "out"),
            "store": str(out / "store"),
        }
    )


def write_tar(path: Path, numbers: range) -> None:
    """Write pairs of the pool as a tar. The torn image has a complete header and half of its bytes."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image, caption = picture(number), CAPTIONS[number]
            add(tar, f"{number:05d}.png", image[: len(image) // 2] if number == TORN else image)
            if caption is not None:
                add(tar, f"{number:05d}.txt", caption.encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def picture(seed: int) -> bytes:
    """Return a noisy PNG of 60 x 40 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def phase_record(folder: str, name: str, pairs: int, epochs: int) -> StageRecord:
    """Write a finished training phase."""
    artifact = Artifact.of(folder, name, version=1)
    points = [
        {
            "step": step,
            "samples_seen": step,
            "epoch": step / pairs,
            "loss": 5 / step,
            "lr": 1e-3,
            "grad_norm": 1.0,
            "samples_per_second": 100.0,
        }
        for step in range(1, LOGGED_STEPS + 1)
    ]
    files.write(artifact.path("metrics.jsonl"), "".join(json.dumps(point) + "\n" for point in points).encode())
    totals = {
        "loss": 5 / LOGGED_STEPS,
        "steps": LOGGED_STEPS,
        "samples_seen": pairs * epochs,
        "pairs": pairs,
        "epochs": epochs,
        "skipped": 1,
        "examples": ["00033: <i>undecodable</i>"],
        "num_workers": 2,
    }
    artifact.publish(totals=totals, parts=[], seconds=60.0)
    return StageRecord(
        name=name,
        role=Role(name),
        kind=name,
        uri=artifact.uri,
        made_from=artifact.made_from,
        reused=True,
        seconds=0.01,
    )


def evaluation_record(folder: str, models: tuple[str, ...]) -> StageRecord:
    """Write a finished evaluation; each model is twice as good as the previous one."""
    artifact = Artifact.of(folder, "evaluation", version=1, models=list(models))
    ways = [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    totals = {
        name: {
            "zero_shot": {
                "top1": 0.02 * 2**i,
                "top5": 0.1 * 2**i,
                "mean_per_class": 0.02 * 2**i,
                "num_classes": 200,
                "num_images": 1000,
                "skipped": 3,
            },
            "retrieval": {**dict.fromkeys(ways, 0.25), "num_pairs": 400, "skipped": 0},
        }
        for i, name in enumerate(models)
    }
    artifact.publish(totals=totals, parts=[], seconds=5.0)
    return StageRecord(
        name="evaluate",
        role=Role.EVALUATE,
        kind="evaluation",
        uri=artifact.uri,
        made_from=artifact.made_from,
        reused=False,
        seconds=5.0,
    )
