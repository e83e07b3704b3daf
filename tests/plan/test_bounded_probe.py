"""A probe ends within minutes: it measures what the pace of a model allows, and says what it leaves out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, EfficientNetLite0Encoder
from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError
from orchestrator.plan import pace, probe, probe_config, probe_runner
from tests.plan.test_probe import costs
from tests.support.commands import Shell
from tests.support.pools import config_of, make_pairs, write_tars

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the size of the cluster, and returns the batch size and the steps of a probe's training."""

    def size(config: Config, *, gpus: int, workers: int, pair_seconds: float, num_pairs: int = 10**6) -> Any:
        monkeypatch.setattr(ray_cluster, "num_gpus", lambda: gpus)
        monkeypatch.setattr(ray_cluster, "num_cpus", lambda: 16)
        training = probe_config.training_of(config, num_pairs, workers, pair_seconds).training
        assert training.samples is not None
        return training.global_batch_size, training.samples // training.global_batch_size

    return size


def laion(tmp_path: Path, **training: Any) -> Config:
    return config_of({"format": "webdataset", "uri": "x"}, tmp_path, training=training)


def test_training_gets_the_pairs_that_fit_into_the_time(sized: Any, tmp_path: Path) -> None:
    config = laion(tmp_path)
    # a small model: as many pairs as before
    assert sized(config, gpus=0, workers=2, pair_seconds=0.001) == (2 * 64, 8)
    # 20 s of work for a worker: four steps on 20 pairs, eight on 5 would say less of a batch of 16,384
    assert sized(config, gpus=0, workers=2, pair_seconds=0.25) == (2 * 20, 4)
    assert sized(config, gpus=0, workers=2, pair_seconds=5.0) == (2 * 1, 4)
    assert sized(config, gpus=0, workers=2, pair_seconds=0.25, num_pairs=6) == (2 * 3, 8)
    assert sized(config, gpus=8, workers=8, pair_seconds=0.0) == (8 * 2048, 40), "the pace is not known"
    assert sized(config, gpus=8, workers=8, pair_seconds=0.0004) == (8 * 2048, 24)
    assert sized(config, gpus=8, workers=8, pair_seconds=0.004) == (8 * 1250, 4)
    in_chunks = laion(tmp_path, accumulation=4)
    assert sized(in_chunks, gpus=0, workers=2, pair_seconds=0.25) == (2 * 2 * 10, 4)
    chosen = laion(tmp_path)
    chunks = probe_config.training_of(chosen, 10**6, 8, 0.0, 8).training
    assert chunks.accumulation == 2, "the probe accumulates as the run does, but not more than twice"
    assert probe_config.training_fits(5.0)
    assert not probe_config.training_fits(10.0)
    assert not probe_config.training_fits(5.0, start_seconds=40.0)


def test_an_encoder_gets_the_pairs_that_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EfficientNetLite0Encoder(batch_size=256)
    monkeypatch.setattr(ray_cluster, "num_gpus", lambda: 0)
    sizes = [probe_config.encoder_of(settings, seconds).batch_size for seconds in (0.0, 0.01, 0.5, 3.0)]
    assert sizes == [32, 32, 10, 1]
    assert probe_config.encoder_fits(3.0)
    assert not probe_config.encoder_fits(9.0)
    monkeypatch.setattr(ray_cluster, "num_gpus", lambda: 1)
    assert probe_config.encoder_of(settings).batch_size == 256


def test_the_pace_is_that_of_the_models_own_step(tmp_path: Path) -> None:
    config = config_of({"format": "webdataset", "uri": "x"}, tmp_path, model={"name": None, "config": TOWERS})
    step = pace._training_pace(config, 2, 1, "cpu")
    assert 0 < step.seconds(1) < step.seconds(100) < 100
    assert step.image_size == 32
    assert step.num_bytes > 4 * 49408 * 64
    found = pace._encoder_pace(EfficientNetLite0Encoder(image_size=32), 1)
    assert found.pair_seconds > 0
    assert found.dims == {"image": 1280}
    unknown = config_of({"format": "webdataset", "uri": "x"}, tmp_path, model={"name": "ViT-B-33"})
    with pytest.raises(UserError, match=r"model: .*ViT-B-33"):
        pace._training_pace(unknown, 2, 1, "cpu")


def test_a_pace_that_takes_too_long_is_none(ray_cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pace, "PACE_SECONDS", 0.01)
    assert pace.training_pace(laion(tmp_path), 2) is None


def test_plan_of_a_large_model_on_a_laptop_says_what_it_measures_and_what_not(
    run_command: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(tmp_path / "pool", make_pairs(40), num_shards=1)
    (tar,) = (tmp_path / "pool").iterdir()
    slow = pace.TrainingPace(step_seconds=2.0, pair_seconds=12.0, start_seconds=5.0, image_size=32, num_bytes=600)
    monkeypatch.setattr(probe_runner, "training_pace", lambda *_: slow)
    done = run_command(f"python -m orchestrator plan +exp=wfpp_laion source.uri={tar} store=STORE", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = costs(done.stdout)
    assert found["score, wfpp"][1] != "not measured"
    # 16,384 pairs a worker at 12 s, and a little decoding
    samples_per_second = re.search(r"training: ([\d.]+) samples/s with 2 workers and 2 pairs per worker", done.stdout)
    assert samples_per_second is not None
    assert float(samples_per_second[1]) == pytest.approx(2 / 12.0, abs=0.06)
    assert "16,384 pairs per worker and batch: the pace is extrapolated from single steps on fewer pairs" in done.stdout
    assert found["pretrain"][1] != "not measured" != found["finetune"][1]
    lines = re.findall(r"probe: (\d+)/(\d+) stages, measuring (.+), at most (\d+) s left", done.stdout)
    assert (lines[0][2], lines[-1][2]) == ("catalog", "a training step")
    assert [int(count) for count, _, _, _ in lines] == sorted(int(count) for count, _, _, _ in lines)
    assert all(int(left) <= probe.ALL_SECONDS for _, _, _, left in lines)
    assert not list((tmp_path / "STORE").glob("*"))


def test_plan_ends_when_its_time_is_up(run_command: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tars(tmp_path / "pool", make_pairs(40), num_shards=1)
    ended = list[bool]()
    # the cluster of all tests goes on
    monkeypatch.setattr(ray_cluster, "disconnect", lambda: ended.append(True))
    monkeypatch.setattr(probe, "STAGE_SECONDS", 0.2)
    done = run_command(f"python -m orchestrator plan +exp=wfpp_laion source.uri={tar} store=STORE", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ended
    assert {cells[1] for name, cells in costs(done.stdout).items() if "total" not in name} == {"not measured"}
    assert "the probe stopped while it measured catalog: it takes at most 0 s for a stage and 180 s" in done.stdout
    assert not list((tmp_path / "STORE").glob("probe-*"))
