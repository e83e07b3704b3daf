"""The embedding stage against an obvious loop, on pools with broken pairs, parts of all sizes, and interruptions."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.clip import model
from orchestrator.clip.tokens import captions_of
from orchestrator.config import OpenClipEncoder
from orchestrator.config.embedding import Tower
from orchestrator.data.image_decode import ImageDecoder
from orchestrator.embedding import execution
from orchestrator.embedding.actor import Embedder, describe
from orchestrator.embedding.encode import BuildEmbedding
from orchestrator.embedding.execution import Pass
from orchestrator.embedding.pool import Pool
from orchestrator.embedding.vectors import clip_scores, unit_rows, unit_vectors
from orchestrator.engine import gpus
from orchestrator.engine.metering import Meter
from orchestrator.engine.parts import done_summaries
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.storage import files
from tests.support.embedding_bench import (
    MAX_PIXELS,
    ROUNDING,
    Bench,
    clip_settings,
    odd_pairs,
    one_by_one,
    times,
    whole,
)
from tests.support.pools import (
    Pair,
    make_pairs,
    write_parquet_images,
    write_table,
    write_tars,
)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_both_towers_equal_the_obvious_loop(kind: str, clip_folder: str, tmp_path: Path) -> None:
    pairs = odd_pairs(61)
    write = write_tars if kind == "webdataset" else write_parquet_images
    uri = write(tmp_path / "pool", pairs, num_shards=3)
    bench = Bench.of({"format": kind, "uri": uri}, tmp_path, clip=clip_settings(clip_folder))
    embedding = bench.build()
    expected = one_by_one(bench.config.embedding["clip"], pairs)
    towers: tuple[Tower, ...] = ("image", "text")
    for tower in towers:
        vectors = whole(embedding, tower)
        assert vectors.dtype == np.float16
        np.testing.assert_allclose(vectors.astype(np.float32), expected[tower], atol=ROUNDING)
        assert (vectors.any(axis=1) == expected[tower].any(axis=1)).all(), "no row but the bad ones is zero"
        norms = np.linalg.norm(vectors[vectors.any(axis=1)].astype(np.float32), axis=1)
        np.testing.assert_allclose(norms, 1, atol=ROUNDING)
        assert embedding.has(tower)
        assert embedding.dim(tower) == vectors.shape[1]
    scores, both = whole(embedding, "clip_score"), expected["image"].any(1) & expected["text"].any(1)
    assert scores.dtype == np.float32
    assert (np.isnan(scores) == ~both).all()
    # of the vectors before they are rounded to float16; batches change the last bits of the encoder's
    cosines = (expected["image"].astype(np.float64) * expected["text"]).sum(1)[both]
    np.testing.assert_allclose(scores[both], cosines, atol=2e-6)
    products = (whole(embedding, "image").astype(np.float32) * whole(embedding, "text").astype(np.float32)).sum(1)
    assert np.abs(products[both] - cosines).max() > 2e-5
    totals = embedding.artifact.totals
    assert totals["rows"] == 61
    assert totals["image"] == 61 - 5
    assert totals["text"] == 61 - 3
    assert totals["problems"] == {"undecodable": 2, "too_large": 1}
    assert sorted(totals["examples"]) == [
        "000000002: undecodable",
        "000000005: too_large",
        "000000017: undecodable",
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_real_weights_on_parts_of_all_sizes(tmp_path: Path) -> None:
    pairs, folder, first = make_pairs(24), tmp_path / "pool", 0
    for number, size in enumerate((1, 9, 1, 12, 1)):
        write_tars(tmp_path / "one", pairs[first : first + size])
        folder.mkdir(exist_ok=True)
        (tmp_path / "one" / "00000.tar").rename(folder / f"{number:05d}.tar")
        first += size
    settings = {"kind": "efficientnet_lite0", "image_size": 96, "batch_size": 5}
    bench = Bench.of({"format": "webdataset", "uri": str(folder)}, tmp_path, lite=settings)
    embedding = bench.build()
    assert [part["rows"] for part in embedding.artifact.parts] == [1, 9, 1, 12, 1]
    expected = one_by_one(bench.config.embedding["lite"], pairs)["image"]
    np.testing.assert_allclose(whole(embedding, "image").astype(np.float32), expected, atol=ROUNDING)
    assert not embedding.has("text")
    again = expected @ expected.T
    assert (np.sort(again, axis=1)[:, -2] > 0.5).all(), "pictures of the same kind are neighbours"


@pytest.mark.usefixtures("ray_cluster")
def test_parts_with_nothing_to_embed_are_written(clip_folder: str, tmp_path: Path) -> None:
    pairs = [Pair(f"{i:09d}", f"caption {i}", None) for i in range(6)] + make_pairs(12)[6:]
    uri = write_tars(tmp_path / "pool", pairs, num_shards=4)
    settings = clip_settings(clip_folder, towers=["image"])
    embedding = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=settings).build()
    assert [(part["rows"], part["image"]) for part in embedding.artifact.parts] == [(3, 0), (3, 0), (3, 3), (3, 3)]
    assert embedding.image(0).shape == (3, 16)
    assert not embedding.image(1).any()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("batch_size", "shards"), [(7, 30), (50, 4)])
def test_batches_are_full_across_the_borders_of_parts(
    batch_size: int, shards: int, clip_folder: str, tmp_path: Path
) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(61), num_shards=shards)
    bench = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=clip_settings(clip_folder))
    settings = bench.config.embedding["clip"].model_copy(update={"batch_size": batch_size})
    described = describe(settings)  # type: ignore[arg-type]
    pool = Pool(
        source=bench.source,
        parts=tuple(bench.source.parts()),
        catalog=bench.catalog,
        towers=("image", "text"),
        decoder=ImageDecoder(*described.image_input, max_pixels=MAX_PIXELS),
        tokenize=described.tokenize,
    )
    artifact = bench.stage().artifact
    batches = list(Pass(artifact, settings, pool, described.dims).run(range(shards)))  # type: ignore[arg-type]
    full, rest = divmod(61, batch_size)
    assert batches == [batch_size] * full + [rest]
    assert len(done_summaries(artifact)) == shards


@pytest.mark.usefixtures("ray_cluster")
def test_neither_batches_nor_actors_change_the_vectors(
    clip_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_tars(tmp_path / "pool", odd_pairs(61), num_shards=3)
    source = {"format": "webdataset", "uri": uri}
    first = Bench.of(source, tmp_path / "a", clip=clip_settings(clip_folder)).build()
    monkeypatch.setattr(execution, "num_actors", lambda: 2)
    second = Bench.of(source, tmp_path / "b", clip=clip_settings(clip_folder, batch_size=23)).build()
    assert first.artifact.fingerprint == second.artifact.fingerprint
    for name in ("image", "text", "clip_score"):
        np.testing.assert_allclose(whole(first, name), whole(second, name), atol=ROUNDING)


@pytest.mark.usefixtures("ray_cluster")
def test_finished_parts_are_not_embedded_again(clip_folder: str, tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(40), num_shards=4)
    bench = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=clip_settings(clip_folder))
    first = bench.build()
    before, vectors = times(first), whole(first, "image")
    Path(first.artifact.path("manifest.json")).unlink()
    Path(first.artifact.path("parts", "000002.json")).unlink()
    Path(first.artifact.path("parts", "000002.image.npy")).write_bytes(b"half")
    after = times(bench.build())
    assert {path.name.split(".")[0] for path in before if before[path] != after[path]} == {"000002"}
    np.testing.assert_allclose(whole(bench.build(), "image"), vectors, atol=ROUNDING)


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_bad_pairs_are_an_error(clip_folder: str, tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", odd_pairs(40), num_shards=2)
    source = {"format": "webdataset", "uri": uri}
    strict = Bench.of(source, tmp_path, clip=clip_settings(clip_folder, max_bad_pairs=0.05))
    with pytest.raises(UserError, match=r"embedding\.clip: 3 of 40 pairs .* at most 5\.0% .*embedding\.clip\.max_bad"):
        strict.build()
    assert not strict.stage().artifact.is_complete()
    before = {path: path.stat().st_mtime_ns for path in Path(strict.stage().artifact.path("parts")).iterdir()}
    assert times(Bench.of(source, tmp_path, clip=clip_settings(clip_folder, max_bad_pairs=0.1)).build()) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_read_error_is_not_a_bad_pair(clip_folder: str, tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(20))
    bench = Bench.of({"format": "webdataset", "uri": uri}, tmp_path, clip=clip_settings(clip_folder))
    tar = Path(uri) / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:8000])
    with pytest.raises(OSError, match="changed since it was read"):
        bench.build()
    assert done_summaries(bench.stage().artifact) == {}


@pytest.mark.usefixtures("ray_cluster")
def test_captions_alone_read_no_image(clip_folder: str, tmp_path: Path) -> None:
    captions = ["a red square", None, "a blue stripe", "", "stripes"] * 5
    uri = write_table(tmp_path / "table", captions, num_files=2)
    source = {"format": "table", "uri": uri}
    bench = Bench.of(source, tmp_path, clip=clip_settings(clip_folder, towers=["text"]))
    embedding = bench.build()
    pairs = [Pair(str(i), caption, None) for i, caption in enumerate(captions)]
    expected = one_by_one(bench.config.embedding["clip"], pairs)["text"]
    np.testing.assert_allclose(whole(embedding, "text").astype(np.float32), expected, atol=ROUNDING)
    assert embedding.artifact.totals["text"] == 15
    assert not files.exists(embedding.artifact.path("parts", "000000.clip_score.npy"))
    with pytest.raises(UserError, match="a caption table, which has none"):
        Bench.of(source, tmp_path, clip=clip_settings(clip_folder)).stage()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "timm", "model": "resnet_18"}, "embedding.odd: unknown timm model 'resnet_18': did you mean"),
        ({"kind": "timm", "model": "resnet18", "checkpoint": "no.pth"}, "no such checkpoint"),
        ({"kind": "open_clip", "model": "ViT-B-33", "pretrained": "openai"}, "unknown model 'ViT-B-33'"),
        (
            {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "closedai"},
            "closedai.* is neither a file nor a tag",
        ),
        ({"kind": "open_clip", "model": "ViT-B-32", "towers": []}, "embedding.odd.towers is empty"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], message: str, tar_pool: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        Bench.of({"format": "webdataset", "uri": tar_pool}, tmp_path, odd=settings).build()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("ray_cluster")
def test_what_changes_vectors_changes_the_fingerprint(clip_folder: str, tar_pool: str, tmp_path: Path) -> None:
    def fingerprint(**settings: Any) -> str:
        embedding = {"clip": clip_settings(clip_folder, **settings)}
        return Bench.of({"format": "webdataset", "uri": tar_pool}, tmp_path, **embedding).stage().artifact.fingerprint

    first = fingerprint()
    assert first == fingerprint(batch_size=99, max_bad_pairs=0.2, towers=["text", "image"])
    assert len({first, fingerprint(precision="bf16"), fingerprint(towers=["image"])}) == 3
    weights = Path(clip_folder) / model.WEIGHTS_FILE
    data = weights.read_bytes()
    os.utime(weights)
    assert fingerprint() == first
    weights.write_bytes(data[:-1] + b"\x01")
    assert fingerprint() != first
    weights.write_bytes(data)


def test_unit_vectors_of_odd_rows() -> None:
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0], [1e30, -1e30]], np.float32)
    expected = np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0], [0.5**0.5, -(0.5**0.5)]])
    np.testing.assert_allclose(unit_vectors(rows).astype(float), expected, atol=1e-3)
    scores = clip_scores(unit_vectors(rows), unit_vectors(rows))
    assert np.isnan(scores).tolist() == [False, True, True, True, False, False]


def test_clip_scores_are_cosines_of_vectors_of_any_norm() -> None:
    rng = np.random.default_rng(0)
    wide = unit_rows(rng.standard_normal((2, 500, 512)).reshape(1000, 512)).reshape(2, 500, 512)
    wide[1] = unit_rows(0.3 * wide[0] + wide[1])
    exact = (wide[0].astype(np.float64) * wide[1]).sum(axis=1)
    np.testing.assert_allclose(clip_scores(wide[0], wide[1]), exact, atol=2e-7)
    np.testing.assert_allclose(clip_scores(5 * wide[0], 1e-3 * wide[1]), exact, atol=2e-7)
    image, text = wide.astype(np.float16)
    norms = [np.linalg.norm(stored.astype(np.float64), axis=1) for stored in (image, text)]
    of_stored = (image.astype(np.float64) * text.astype(np.float64)).sum(axis=1) / norms[0] / norms[1]
    np.testing.assert_allclose(clip_scores(image, text), of_stored, atol=2e-7)
    parts = [clip_scores(image[i : i + 7], text[i : i + 7]) for i in range(0, 98, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), clip_scores(image, text)[:98])


def test_the_fingerprint_contains_the_precision_that_is_used(
    clip_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_tars(tmp_path / "pool", make_pairs(4))

    def stage(**settings: Any) -> Stage:
        source = {"format": "webdataset", "uri": uri}
        return Bench.of(source, tmp_path, clip=clip_settings(clip_folder, **settings)).stage()

    on_cpus, explicit = stage(), stage(precision="fp32", compile=True)
    # the settings of earlier versions: what they stored is reused
    assert set(on_cpus.artifact.made_from["settings"]) == {
        "kind",
        "max_image_pixels",
        "model",
        "precision",
        "pretrained",
    }
    assert on_cpus.artifact.made_from["settings"]["precision"] == "fp32"
    assert on_cpus.artifact.fingerprint == explicit.artifact.fingerprint
    assert stage(draft_decoding=True).artifact.fingerprint != on_cpus.artifact.fingerprint
    monkeypatch.setattr(gpus, "native_precision", lambda config: "bf16")
    on_gpus = stage()
    assert on_gpus.artifact.fingerprint == stage(precision="bf16").artifact.fingerprint
    assert on_gpus.artifact.fingerprint != on_cpus.artifact.fingerprint
    assert isinstance(on_gpus.build, BuildEmbedding)
    assert on_gpus.build.settings.precision == "bf16", "the actors compute what the fingerprint says"


def test_tokens_are_those_of_the_model(clip_folder: str) -> None:
    found = describe(OpenClipEncoder(model=clip_folder, pretrained=None))
    assert found.tokenize is not None
    captions = ["a red square", "", "caf\u00e9 \U0001f600 " * 40]
    tokens = found.tokenize(captions)
    assert tokens.dtype == np.int32
    assert (tokens == model.load(clip_folder).tokenizer(captions).numpy()).all()
    assert found.tokenize([]).shape == (0, tokens.shape[1])


def test_threads_of_an_actor_give_the_vectors_of_one(clip_folder: str) -> None:
    settings = OpenClipEncoder(model=clip_folder, pretrained=None, precision="fp32")
    embedder, rng = Embedder(settings, 1, Meter()), np.random.default_rng(0)
    tokens = captions_of(embedder.encoder.clip.tokenizer)([f"caption {number}" for number in range(8)])
    size = embedder.encoder.image_input.size
    batches = [
        {
            **{name: np.full(8, number) for name in ("part", "row", "expected", "key")},
            "image": rng.integers(0, 255, (8, size, size, 3), np.uint8),
            "has_image": np.ones(8, bool),
            "tokens": tokens,
            "has_text": np.ones(8, bool),
        }
        for number in range(12)
    ]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(embedder, batches))
    for batch, found in zip(batches, together, strict=True):
        alone = embedder(batch)
        for name in ("part", "image", "text", "clip_score"):
            np.testing.assert_array_equal(found[name], alone[name])
