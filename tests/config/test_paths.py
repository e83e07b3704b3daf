"""Places mean the same from any folder once a config is prepared; what is absolute or no path stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, TrackingConfig
from orchestrator.pipeline import planned, prepare
from tests.support.pools import config_of, make_pairs, write_tars


def prepared(uri: Any, **source: Any) -> Config:
    return prepare(config_of({"format": "webdataset", "uri": uri, **source}, Path("store")))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pool", "HERE/pool"),
        ("pool/{00..10}.tar", "HERE/pool/{00..10}.tar"),
        ("./*/[01]*.tar", "HERE/*/[01]*.tar"),
        ("a.tar::b/c.tar::s3://b/d.tar", "HERE/a.tar::HERE/b/c.tar::s3://b/d.tar"),
        ("simplecache::s3://b/a.tar", "simplecache::s3://b/a.tar"),
        (["a", "s3://b/{0..3}.tar"], ("HERE/a", "s3://b/{0..3}.tar")),
        ("/pool/a.tar", "/pool/a.tar"),
        ("gs://b//c.tar", "gs://b//c.tar"),
    ],
)
def test_a_source_is_found_from_any_folder(
    uri: Any, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(uri, cache="copies").source
    here = [place.replace("HERE", str(tmp_path)) for place in ([expected] if isinstance(uri, str) else expected)]
    assert [found.uri] == here if isinstance(uri, str) else found.uri == tuple(here)
    assert found.cache == f"{tmp_path}/copies"  # type: ignore[union-attr]


def test_the_artifacts_are_those_of_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path / "pool", make_pairs(4))
    made = config_of({"format": "webdataset", "uri": str(tmp_path / "pool")}, tmp_path / "store")
    stages = [stage.artifact for stage in planned(made).stages]
    assert [stage.artifact for stage in planned(prepared("pool")).stages] == stages


def test_a_trackers_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert TrackingConfig(mlflow_uri="mlruns").mlflow_uri == f"{tmp_path}/mlruns"
