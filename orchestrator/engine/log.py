"""The log of a run: `OUT/run.log` holds the stages, cache hits, retries, lease events, restarts, warnings of the driver
and of workers, and the traceback of a failure.

Every module logs to `logging.getLogger(__name__)`. While a command runs, `run_log` writes the records of the logger
`orchestrator` and Python's warnings to the file. A file in a bucket cannot be appended to: there the log is a local
file that is uploaded at the end of each stage (records with `UPLOAD`) and at the end of the command.

Tasks and actors run in other processes. `captured` collects what they log and `replay` writes it in the driver."""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.config import without_password
from orchestrator.engine import stop_signals
from orchestrator.errors import Stopped, UserError, one_line
from orchestrator.storage import files

FILE = "run.log"
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
ROOT, WARNINGS = "orchestrator", "py.warnings"
# `logger.info(..., extra=UPLOAD)` marks a record after which a log in a bucket is uploaded
UPLOAD = {"upload": True}

logger = logging.getLogger(__name__)

Record = tuple[str, int, str]


@contextmanager
def run_log(out: str, level: str = "INFO") -> Iterator[None]:
    """Append what the block logs to `run.log` in the folder `out` of a run, the traceback of an error included.

    Errors: `StoreError` if the folder cannot be written."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-log-") as folder:
        handler = _handler(files.join(out, FILE), Path(folder))
        handler.setFormatter(_WithoutSecrets(FORMAT))
        with handler, attached(handler, level):
            logger.info("started: %s (pid %d on %s)", " ".join(sys.argv), os.getpid(), platform.node())
            try:
                yield
            except BaseException as error:
                _log_end(error)
                raise
            logger.info("finished", extra=UPLOAD)


def _log_end(error: BaseException) -> None:
    if isinstance(error, Stopped):
        logger.warning("stopped: %s", error, extra=UPLOAD)
    elif stop_signals.received() is not None:
        logger.warning("stopped by %s, which led to:", stop_signals.name(), exc_info=error, extra=UPLOAD)
    else:
        mistake = one_line(error) if isinstance(error, UserError) else type(error).__name__
        logger.error("failed: %s", mistake, exc_info=error, extra=UPLOAD)


@contextmanager
def attached(handler: logging.Handler, level: str) -> Iterator[None]:
    """Give a handler the records of this package and Python's warnings, from `level` on, while the block runs."""
    sources = [logging.getLogger(ROOT), logging.getLogger(WARNINGS)]
    before = [source.level for source in sources]
    logging.captureWarnings(True)
    for source in sources:
        source.addHandler(handler)
        source.setLevel(level)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for source, was in zip(sources, before, strict=True):
            source.removeHandler(handler)
            source.setLevel(was)


class _WithoutSecrets(logging.Formatter):
    """Removes passwords and signatures of URIs from every line: the log is shared like the report."""

    def format(self, record: logging.LogRecord) -> str:
        return without_password(super().format(record))


class _File(logging.FileHandler):
    """A log file that closes at the end of a `with` block."""

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Uploaded(_File):
    """A local log file that is copied to its URI after each record with `UPLOAD`."""

    def __init__(self, path: Path, uri: str):
        super().__init__(path, encoding="utf-8")
        self.uri = uri

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if getattr(record, "upload", False):
            # stages report their own write errors; a lost log must not end a run
            with suppress(OSError, files.StoreError):
                files.put_file(self.baseFilename, self.uri)


def _handler(uri: str, folder: Path) -> _File:
    if files.is_local(uri):
        path = files.filesystem(uri)[1]
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return _File(path, encoding="utf-8")
        except OSError as error:
            raise files.unwritable(uri, error) from error
    path = str(folder / FILE)
    if files.exists(uri):
        files.get_file(uri, path)
    return _Uploaded(Path(path), uri)


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[Record] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, record.getMessage()))


@contextmanager
def captured() -> Iterator[list[Record]]:
    """Collect the warnings and errors that the block logs in this process; a task returns them to the driver."""
    handler = _Collected()
    root = logging.getLogger(ROOT)
    root.addHandler(handler)
    try:
        yield handler.records
    finally:
        root.removeHandler(handler)


def replay(records: Sequence[Record]) -> None:
    """Write what a task or actor has collected to the driver's log."""
    for name, level, message in records:
        logging.getLogger(name).log(level, "%s", message)
