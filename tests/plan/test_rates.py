"""The rates that a probe measures separately: decoding, the forward pass, the embedding writer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.clip.model import build
from orchestrator.config import WebDatasetSource
from orchestrator.data.catalog import Catalog
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.plan import rates
from orchestrator.source import PAIR_COLUMNS, Source, Status, open_source
from orchestrator.storage import files
from orchestrator.training.validation import save_model
from tests.support.pools import config_of, make_pairs, write_catalog, write_tars


@pytest.fixture
def pool(tmp_path: Path) -> tuple[Source, Catalog]:
    source = open_source(WebDatasetSource(uri=write_tars(tmp_path / "pool", make_pairs(20), num_shards=1)))
    table = source.catalog(source.parts()[0]).table
    return source, write_catalog(tmp_path / "store", table.to_pylist(), [table.num_rows])


def test_decoding_gets_usable_pairs_as_training_reads_them(pool: tuple[Source, Catalog], tmp_path: Path) -> None:
    source, catalog = pool
    block = rates._pairs(source, catalog)
    table = catalog.table(0, PAIR_COLUMNS)
    usable = np.flatnonzero(table["status"].to_numpy() == Status.OK)
    assert block["key"].to_pylist() == table["key"].take(usable).to_pylist()
    assert all(block["image"].to_pylist())
    config = config_of({"format": "webdataset", "uri": str(tmp_path / "pool")}, tmp_path / "store")
    seconds = rates._decode_seconds(rates.ProbeRun(config, source, catalog), 32)
    assert 0 < seconds < 0.1, "for a small image"


@pytest.mark.parametrize(
    ("decode_in", "gpu_bytes", "pace"), [("tasks", 9, 400), ("workers", 9, 300), ("tasks", 0, 300)]
)
def test_waiting_counts_unless_more_cores_would_shorten_it(
    decode_in: str, gpu_bytes: int, pace: float, tmp_path: Path
) -> None:
    artifact = Artifact.of(str(tmp_path), "pretrain", version=1)
    line = {"samples_per_second": 300.0, "data_wait_share": 0.25, "memory_bytes": 7, "gpu_memory_bytes": gpu_bytes}
    files.write(artifact.path("metrics.jsonl"), "\n".join([json.dumps(line)] * 8).encode())
    files.write(artifact.path("model/weights"), b"0123")
    artifact.publish(totals={"num_workers": 2}, parts=[], seconds=1.0)
    config = config_of({"format": "webdataset", "uri": "x"}, tmp_path, training={"decode_in": decode_in})
    found = rates._phase(artifact, config, 64, 0.001)
    assert found.samples_per_second == pytest.approx(pace)
    assert found.wait_share == pytest.approx(0.25)
    assert found.waits_for_cores == (pace == 400)


def test_forward_pass_uses_the_image_size_of_the_model(tmp_path: Path) -> None:
    towers = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    clip = build(name=None, config=towers, pretrained=None, image_size=None, context_length=None, seed=0)
    save_model(clip, str(tmp_path / "model"))
    found = rates._forward_pass(str(tmp_path / "model"), 0.5)
    assert found.image_seconds > 0
    assert found.text_seconds > 0
    assert found.decode_seconds == 0.5
    assert found.peak_bytes > 10 * 2**20


def test_writer_writes_whole_parts(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "embedding", version=1)
    load = rates.WriterLoad(dims={"image": 8, "text": 8}, batch_size=3, rows_per_part=10)
    assert rates._writer_seconds(artifact, load) > 0
    assert [Embedding(artifact).image(part).shape for part in range(rates.NUM_PARTS)] == [(10, 8)] * rates.NUM_PARTS
