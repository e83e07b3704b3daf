"""The record of a run: `run.json` in its folder lists its stages and artifacts, for report, export and the API."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import TRAINING_ROLES, Role, role_and_step
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.storage import files

FILE = "run.json"
# libraries whose versions can change results; the record holds their versions and that of Python
LIBRARIES = ("open_clip_torch", "polars", "pyarrow", "ray", "timm", "torch")
# the stages that train, in order; each is of the kind of its role, and is named after it
PHASES = tuple(role.value for role in TRAINING_ROLES)


class StageRecord(BaseModel):
    """One stage of a run: its artifact, new or reused, and the wall seconds that this run spent on it."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role
    step: str | None = None
    kind: str
    uri: str
    made_from: dict[str, Any]
    reused: bool
    seconds: float

    @classmethod
    def of(cls, stage: Stage, *, reused: bool, seconds: float) -> StageRecord:
        """Return the record of a complete stage."""
        made = stage.artifact
        return cls(
            name=stage.name,
            role=stage.role,
            step=stage.step,
            kind=made.kind,
            uri=made.uri,
            made_from=made.made_from,
            reused=reused,
            seconds=seconds,
        )

    @property
    def artifact(self) -> Artifact:
        """The stage's artifact."""
        return Artifact(self.kind, self.uri, self.made_from)


class RunRecord(BaseModel):
    """A finished run of a verb. `config` is the whole composed configuration.

    `not_evaluated` is why the evaluation failed; the run then has everything before it."""

    model_config = ConfigDict(frozen=True)

    name: str
    verb: str
    config: dict[str, Any]
    stages: list[StageRecord]
    versions: dict[str, str]
    started: str
    wall_seconds: float
    not_evaluated: str | None = None

    def of_kind(self, kind: str) -> list[Artifact]:
        """Return the artifacts of a kind, in order; an empty list if the verb does not make any."""
        return [stage.artifact for stage in self.stages if stage.kind == kind]

    def with_role(self, role: Role) -> list[StageRecord]:
        """Return the stages with a role, in order; an empty list if the verb does not run any."""
        return [stage for stage in self.stages if stage.role == role]

    def find(self, role: Role, step: str | None = None) -> Artifact | None:
        """Return the artifact of the stage with this role and this step; None if the run has no such stage."""
        return next((stage.artifact for stage in self.with_role(role) if stage.step == step), None)

    def write(self, out: str) -> None:
        """Write `run.json` into the folder of the run."""
        files.write(files.join(out, FILE), self.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, out: str) -> RunRecord:
        """Return the record in the folder of a run. Errors: `UserError` if there is none, or if it is malformed."""
        uri = files.join(out, FILE)
        if not files.exists(uri):
            raise UserError(f"no finished run at {out}: expected {FILE} in it; give run= the out= folder of a run")
        try:
            found = json.loads(files.read(uri))
            found["stages"] = [_with_role(stage) for stage in found["stages"]]
            return cls.model_validate(found)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read {uri}: expected the record of a run of this version or an earlier one; repeat the run"
            ) from error


def _with_role(stage: dict[str, Any]) -> dict[str, Any]:
    if "role" in stage:
        return stage
    role, step = role_and_step(stage["kind"], stage["name"])
    return stage | {"role": role, "step": step}


def library_versions() -> dict[str, str]:
    """Return the installed versions of Python and of `LIBRARIES`, by name."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
