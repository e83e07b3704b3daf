"""`run.json` in a run's folder: which artifacts the run is made of, so that report and export find them again."""

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
# the libraries that decide results, with Python itself: their versions are part of the record
LIBRARIES = ("open_clip_torch", "polars", "pyarrow", "ray", "timm", "torch")
# the stages that train, in order; each is of the kind of its role, and is named after it
PHASES = tuple(role.value for role in TRAINING_ROLES)


class StageRecord(BaseModel):
    """One stage of a run: the artifact it made or found, and the wall seconds this run spent on it."""

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
        """The record of a stage that is complete."""
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
    """A finished run, or as far as its verb went; `config` is the whole configuration as it was composed."""

    model_config = ConfigDict(frozen=True)

    name: str
    verb: str
    config: dict[str, Any]
    stages: list[StageRecord]
    versions: dict[str, str]
    started: str
    wall_seconds: float

    def of_kind(self, kind: str) -> list[Artifact]:
        """The artifacts of a kind, in order; none where the verb did not go that far."""
        return [stage.artifact for stage in self.stages if stage.kind == kind]

    def with_role(self, role: Role) -> list[StageRecord]:
        """The stages with a role, in order; none if the verb did not run them."""
        return [stage for stage in self.stages if stage.role == role]

    def find(self, role: Role, step: str | None = None) -> Artifact | None:
        """The artifact of the stage with that role, of that selection step; None if the run has no such stage."""
        return next((stage.artifact for stage in self.with_role(role) if stage.step == step), None)

    def write(self, out: str) -> None:
        """Writes `run.json` into the run's folder."""
        files.write(files.join(out, FILE), self.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, out: str) -> RunRecord:
        """The record in a run's folder. Errors: `UserError` if there is none, or it is not one that we can read."""
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
    """The installed versions of Python and of the libraries that decide results, by name."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
