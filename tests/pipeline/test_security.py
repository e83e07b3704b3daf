"""What is shared with others is not trusted: nothing of it is executed, leads elsewhere, or is repeated as a secret."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.clip import checkpoint
from orchestrator.clip.encoders import open_clip_encoder, timm_encoder
from orchestrator.config import ConfigError, without_password
from orchestrator.errors import UserError
from orchestrator.storage import npy
from orchestrator.storage.npy import open_npy
from tests.support.commands import Shell
from tests.support.pools import Pair, config_of, make_pairs, write_tars

SOURCE = {"format": "webdataset", "uri": "pool"}


class Trap:
    """Touches a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """What is there once a trap was unpickled."""
    return tmp_path / "sprung"


def test_the_trap_works(sprung: Path) -> None:
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


@pytest.mark.parametrize("write", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))])
def test_weights_are_not_unpickled(write: Any, sprung: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write({"state_dict": {"visual.proj": Trap(sprung)}}, path)
    with pytest.raises(ValueError, match="contains more than tensors, and loading it would run code"):
        open_clip_encoder(name="ViT-B-32", pretrained=str(path), towers=("image",))
    with pytest.raises(ValueError, match=r"weights\.pt"):
        timm_encoder(name="resnet10t", checkpoint=str(path), image_size=None)
    assert not sprung.exists()


def test_checkpoints_are_not_unpickled(sprung: Path, tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    checkpoint.save({"step": Trap(sprung)}, path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(path)
    assert not sprung.exists()


def test_arrays_are_not_unpickled(sprung: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([Trap(sprung)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        npy.from_npy(path.read_bytes())
    with pytest.raises(UserError, match="expected rows of plain values"):
        open_npy(str(path))
    assert not sprung.exists()


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter2@host/{000..010}.tar",
        "s3://key:hunter2@bucket/a.tar",
        "https://host/a.tar?sv=1&sig=hunter2",
        "https://host/a.tar?X-Amz-Signature=hunter2",
        "s3://AKIA1:wJalr/K7MD/hunter2@bucket/a.tar",
        "https://hunter2@host/a.tar",
        "https://host/a.tar?user=me&password=hunter2",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    for groups in ({"source": {**SOURCE, "uri": ["a.tar", uri]}}, {"store": uri}):
        with pytest.raises(ConfigError, match="expected a plain URI") as told:
            config_of(groups.get("source", SOURCE), groups.get("store", tmp_path))  # type: ignore[arg-type]
        assert "hunter2" not in str(told.value)
    for plain in (
        "s3://bucket/a@b/{000..010}.tar?versionId=3",
        "abfs://box@account.dfs.core.windows.net/a.tar",
        "http://host:8080/a@b.tar",
        "s3://bucket/at:noon/a@b.tar",
        "sftp://me@host/a.tar",
    ):
        assert plain in str(config_of({**SOURCE, "uri": plain}, tmp_path).source)
    assert without_password("http://me:p@ss@host/x") == "http://***@host/x"
    assert without_password("s3://AKIA1:w/hunter2@bucket/x?a=1&token=hunter2") == "s3://***@bucket/x?a=1&token=***"


@pytest.mark.usefixtures("ray_cluster")
def test_members_of_an_exported_tar_stay_inside(run_command: Shell, tmp_path: Path) -> None:
    names = ("../../outside", "/absolute", "a/b")
    pairs = [Pair(name, pair.caption, pair.image) for name, pair in zip(names, make_pairs(3), strict=True)]
    pool = write_tars(tmp_path / "pool", pairs)
    done = run_command(
        f"python -m orchestrator select selection.steps=[all] source.uri={pool} out=OUT store=STORE && "
        "python -m orchestrator export run=OUT to=SHARDS",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "SHARDS" / "00000.tar") as tar:
        told = {name: tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")}
        keys = {name: json.load(io.TextIOWrapper(file))["key"] for name, file in told.items() if file}
        assert set(keys.values()) == set(names)
        assert keys["a/b.json"] == "a/b"
        assert not [name for name in tar.getnames() if ".." in name or name.startswith("/")]
        tar.extractall(tmp_path / "unpacked", filter="data")
