"""The log of a run: what reaches it, on disks and in buckets."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

from orchestrator.engine import log
from orchestrator.engine.console import Display
from orchestrator.errors import Stopped, UserError
from orchestrator.storage import files

logger = logging.getLogger("orchestrator.test")


def fail(out: str, error: BaseException) -> None:
    with log.run_log(out):
        raise error


def test_lines_of_the_console_and_of_modules_reach_the_file(tmp_path: Path) -> None:
    with log.run_log(str(tmp_path / "out")):
        Display().warn("a tracker does not answer")
        logger.info("%d pairs", 3)
        logger.debug("not at this level")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("an old setting", stacklevel=1)
    logger.error("after the run")
    text = (tmp_path / "out" / "run.log").read_text()
    assert re.search(r"WARNING orchestrator\.engine\.console: a tracker does not answer", text)
    assert re.search(r"INFO +orchestrator\.test: 3 pairs", text)
    assert "started: " in text
    assert text.rstrip().endswith("finished")
    assert "not at this level" not in text
    assert "after the run" not in text
    assert "an old setting" in text


def test_the_level_can_be_changed(tmp_path: Path) -> None:
    with log.run_log(str(tmp_path), "DEBUG"):
        logger.debug("a detail")
    with log.run_log(str(tmp_path), "ERROR"):
        logger.warning("a warning")
    text = (tmp_path / "run.log").read_text()
    assert "a detail" in text
    assert "a warning" not in text


def test_a_failure_is_logged_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(str(tmp_path), ZeroDivisionError("no batch"))
    text = (tmp_path / "run.log").read_text()
    assert "ERROR" in text
    assert "Traceback" in text
    assert "no batch" in text


def test_a_mistake_and_a_stop_are_logged(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        fail(str(tmp_path), UserError("source.uri is empty"))
    with pytest.raises(Stopped):
        fail(str(tmp_path), Stopped("stopped by SIGTERM"))
    text = (tmp_path / "run.log").read_text()
    assert "failed: source.uri is empty" in text
    assert "stopped: stopped by SIGTERM" in text


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        with log.run_log(str(tmp_path)):
            pass
    assert (tmp_path / "run.log").read_text().count("started: ") == 2


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(files.StoreError, match="cannot write"):
        fail(str(tmp_path / "out"), AssertionError("the block does not start"))


def test_a_log_in_a_bucket_is_uploaded_at_the_ends_of_stages_and_appended(s3_bucket: str) -> None:
    out = f"{s3_bucket}/out"
    with log.run_log(out):
        logger.info("stage 1 complete", extra=log.UPLOAD)
        assert b"stage 1 complete" in files.read(f"{out}/run.log")
    with pytest.raises(ValueError, match="broken"):
        fail(out, ValueError("broken"))
    text = files.read(f"{out}/run.log").decode()
    assert "stage 1 complete" in text
    assert "Traceback" in text


def test_records_of_another_process_are_replayed(tmp_path: Path) -> None:
    with log.captured() as records:
        logger.warning("retry %d", 2)
        logger.info("only warnings travel")
    assert records == [("orchestrator.test", logging.WARNING, "retry 2")]
    with log.run_log(str(tmp_path)):
        log.replay(records)
    assert "WARNING orchestrator.test: retry 2" in (tmp_path / "run.log").read_text()


def test_no_line_holds_a_password(tmp_path: Path) -> None:
    with log.run_log(str(tmp_path)):
        logger.info("tracking.mlflow_uri=https://ann:secret@host/mlflow?token=abc")
    text = (tmp_path / "run.log").read_text()
    assert "https://***@host/mlflow" in text
    assert "secret" not in text
    assert "abc" not in text
