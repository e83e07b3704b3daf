"""What Tune changes in a process: nothing that stays, and no plotting library in the process of a trial."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys

import pytest

from orchestrator.sweep import tuner
from orchestrator.sweep.tuner import QUIET, TUNE_LOGGER


def fail_inside() -> None:
    with tuner._quiet_tune():
        assert {name: os.environ[name] for name in QUIET} == QUIET
        assert logging.getLogger(TUNE_LOGGER).level == logging.CRITICAL
        raise KeyError("after the check")


def test_tunes_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = QUIET
    monkeypatch.setenv(first, "of the user")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    before, level = dict(os.environ), logging.getLogger(TUNE_LOGGER).level
    with pytest.raises(KeyError, match="after the check"):
        fail_inside()
    assert dict(os.environ) == before
    assert logging.getLogger(TUNE_LOGGER).level == level


def test_the_trainable_is_a_plain_function() -> None:
    assert pickle.loads(pickle.dumps(tuner._train)) is tuner._train


@pytest.mark.parametrize("module", ["tuner", "trial_worker"])
def test_a_trials_process_loads_no_plotting_library(module: str) -> None:
    program = f"import sys, orchestrator.sweep.{module}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
