"""Pools and runs shared by the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.engine.run_record import RunRecord
from tests.support.geometry_pool import prune
from tests.support.report_runs import CAPTIONS, evaluation_record, phase_record, select, write_tar


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_tar(folder / "00000.tar", range(0, 17))
    write_tar(folder / "00001.tar", range(17, len(CAPTIONS)))
    return folder


@pytest.fixture(scope="session")
def selected(ray_cluster: str, pool_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Run WFPP over the tars and keep one half."""
    return select(
        {"format": "webdataset", "uri": f"{pool_folder}/{{00000..00001}}.tar"},
        {"steps": ["wfpp"], "wfpp": {"keep_fraction": 0.5, "min_count": 2, "t": 1e-3}},
        tmp_path_factory.mktemp("selected"),
    )


@pytest.fixture(scope="session")
def clustered(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Run SemDeDup, DBP and SSP over a pool with planted copies."""
    return prune(tmp_path_factory.mktemp("clustered"))


@pytest.fixture(scope="session")
def trained(selected: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Add two training phases and an evaluation to `selected`, written as their stages do."""
    folder = str(tmp_path_factory.mktemp("trained"))
    kept = selected.of_kind("keep")[-1].totals["kept"]
    stages = [
        phase_record(folder, "pretrain", kept, 10),
        phase_record(folder, "finetune", 33, 1),
        evaluation_record(folder, ("pretrain", "finetune")),
    ]
    return selected.model_copy(update={"verb": "run", "stages": [*selected.stages, *stages]})
