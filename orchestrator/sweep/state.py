"""The state of a trial, one JSON file in its folder: how far the trial is, how it ended and why it failed.

A resumed sweep needs nothing else of its trials. The file is written whole or not at all, so a kill between any two
writes leaves a valid state; only "finished" and "stopped" trials are not run again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import exceptions

from orchestrator.errors import UserError, causes, one_line
from orchestrator.report.files import JSON_FILE as REPORT_FILE
from orchestrator.storage import files
from orchestrator.storage.files import StoreError

STATE_FILE = "trial.json"
# version 0.1 kept the state in one marker file each, the last of which may be missing
OLD_FILES = ("settings.json", "stopped.json", "failure.json")
# Ray's errors that end the whole command; the death of a process that ran out of memory is not among them
LOST = (
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OwnerDiedError,
    exceptions.RaySystemError,
    exceptions.RpcError,
)
NODE_DIED = "node has died"


class TrialState(BaseModel):
    """How far a trial is.

    Keys: `state`; `settings`, its value for each dimension of the space (empty for a control); `reason`, why it failed,
    and `is_final`, whether a retry would fail too. Of a stopped trial: `samples_seen`, `value` of the sweep's metric
    when it was last measured, and `seconds` since the trial started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["waiting", "running", "finished", "stopped", "failed"]
    settings: dict[str, Any] = Field(default={})
    reason: str | None = None
    is_final: bool = False
    samples_seen: int | None = None
    value: float | None = None
    seconds: float | None = None


def write_state(out: str, state: TrialState) -> None:
    """Write a trial's state into its folder, in place of the earlier one."""
    files.write(files.join(out, STATE_FILE), state.model_dump_json(indent=1).encode())


def read_state(out: str) -> TrialState | None:
    """Return the state in a trial's folder, also one that version 0.1 left; None if the trial never started.

    Errors: `UserError` for a file that this version cannot read."""
    path = files.join(out, STATE_FILE)
    try:
        return TrialState.model_validate_json(files.read(path)) if files.exists(path) else _old_state(out)
    except (ValueError, KeyError):
        raise UserError(
            f"cannot read {path}: expected the state of a trial as this version writes it; remove the folder {out} to "
            "run the trial again"
        ) from None


def _old_state(out: str) -> TrialState | None:
    settings, stopped, failure = (files.join(out, name) for name in OLD_FILES)
    if not files.exists(settings):
        return None
    point = files.read_json(settings)
    # in the order of precedence that version 0.1 had
    if files.exists(files.join(out, REPORT_FILE)):
        return TrialState(state="finished", settings=point)
    if files.exists(stopped):
        return TrialState(state="stopped", settings=point, **files.read_json(stopped))
    if files.exists(failure):
        found = files.read_json(failure)
        return TrialState(state="failed", settings=point, reason=found["reason"], is_final=found["final"])
    return TrialState(state="running", settings=point)


def start(out: str, settings: dict[str, Any], *, stale: tuple[str, ...]) -> None:
    """Mark a trial as running, then remove what an earlier attempt left in its folder: the files named in `stale`.

    In this order, because a state of "finished" promises that the report is there."""
    write_state(out, TrialState(state="running", settings=settings))
    for name in (*stale, *OLD_FILES):
        files.remove(files.join(out, name))


def fail(out: str, settings: dict[str, Any], error: BaseException) -> None:
    """Mark a trial as failed, unless the scheduler has stopped it: the end of its process may look like a failure."""
    before = read_state(out)
    if before is None or before.state != "stopped":
        failed = TrialState(state="failed", settings=settings, reason=reason(error), is_final=_is_final(error))
        write_state(out, failed)


def retry_failed(out: str) -> None:
    """Let a trial that failed run again when its sweep is resumed."""
    before = read_state(out)
    if before is not None and before.state == "failed":
        write_state(out, TrialState(state="waiting", settings=before.settings))


def ended_state(out: str) -> Literal["finished", "stopped"] | None:
    """Return how a trial ended that has nothing left to do; None for any other trial."""
    found = read_state(out)
    if found is None:
        return None
    if found.state == "finished":
        return "finished" if files.exists(files.join(out, REPORT_FILE)) else None
    return "stopped" if found.state == "stopped" else None


def _is_final(error: BaseException) -> bool:
    cause = first_cause(error)
    return isinstance(cause, UserError) and not isinstance(cause, StoreError)


def ends_sweep(error: BaseException) -> bool:
    """Whether an error concerns all trials: storage cannot be read or written, or a node or the cluster is lost."""
    return any(
        isinstance(one, (StoreError, *LOST)) or (isinstance(one, exceptions.ActorDiedError) and NODE_DIED in str(one))
        for one in causes(error)
    )


def first_cause(error: BaseException) -> BaseException:
    """Return the innermost cause, below what Ray and others wrap around it."""
    *_, innermost = causes(error)
    return innermost


def reason(error: BaseException) -> str:
    """Return the innermost cause on one line, without Ray's traces."""
    cause = first_cause(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines and "Traceback" in lines[0] else one_line(cause)
    name = type(cause).__name__
    return text if isinstance(cause, UserError) or text == name else f"{name}: {text}"
