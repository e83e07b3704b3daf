"""`run.json` in a run's folder: which artifacts the run is made of, so that report and export find them again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.engine.artifact import Artifact
from orchestrator.errors import UserError
from orchestrator.storage import files

FILE = "run.json"
# the stages that train, in order; each is of the kind of its name
PHASES = ("pretrain", "finetune")


class StageRecord(BaseModel):
    """One stage of a run: the artifact it made or found, and the wall seconds this run spent on it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    uri: str
    made_from: dict[str, Any]
    reused: bool
    seconds: float

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

    def named(self, name: str) -> Artifact | None:
        """The artifact of the stage with that name."""
        return next((stage.artifact for stage in self.stages if stage.name == name), None)

    def write(self, out: str) -> None:
        """Writes `run.json` into the run's folder."""
        files.write(files.join(out, FILE), self.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, out: str) -> RunRecord:
        """The record in a run's folder. Errors: `UserError` where there is none."""
        uri = files.join(out, FILE)
        if not files.exists(uri):
            raise UserError(f"no finished run at {out}: expected {FILE} in it; give run= the out= folder of a run")
        return cls.model_validate_json(files.read(uri))
