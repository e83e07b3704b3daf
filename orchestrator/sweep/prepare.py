"""What trials share, computed once before any of them starts: none holds a GPU while another makes what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.errors import UserError
from orchestrator.pipeline import build
from orchestrator.progress import Display
from orchestrator.record import StageRecord
from orchestrator.stage import Stage
from orchestrator.store import StoreError
from orchestrator.sweep.schema import SharedStage
from orchestrator.sweep.trials import Trial


@dataclass
class Shared:
    """The stages before training of all trials so far, by the artifact they make."""

    stages: dict[str, Stage] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    built: dict[str, StageRecord] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """By trial: why a stage that it needs cannot be, such as more clusters than pairs; the others go on."""

    def add(self, trials: Iterable[Trial]) -> None:
        """Counts what the trials need."""
        for trial in trials:
            for uri, stage in {stage.artifact.uri: stage for stage in trial.shared}.items():
                self.stages.setdefault(uri, stage)
                self.needed[uri] = self.needed.get(uri, 0) + 1

    def build(self, trials: Iterable[Trial], display: Display) -> None:
        """Builds what the trials need and is not there yet, each once."""
        failed: dict[str, str] = {}
        for trial in trials:
            for stage in trial.shared:
                uri = stage.artifact.uri
                if uri not in self.built and uri not in failed:
                    failed |= self._built(stage, display)
                if uri in failed:
                    self.refused[trial.name] = failed[uri]
                    display.line(f"{trial.name} cannot be: {failed[uri]}")
                    break

    def _built(self, stage: Stage, display: Display) -> dict[str, str]:
        try:
            self.built[stage.artifact.uri] = build(stage, display)
        except StoreError:
            raise
        except UserError as error:
            return {stage.artifact.uri: str(error)}
        return {}

    def counted(self) -> list[SharedStage]:
        """The counts by kind of artifact, in the order of the stages."""
        kinds = dict.fromkeys(stage.artifact.kind for stage in self.stages.values())
        return [self._of_kind(kind) for kind in kinds]

    def _of_kind(self, kind: str) -> SharedStage:
        uris = [uri for uri, stage in self.stages.items() if stage.artifact.kind == kind]
        records = [self.built[uri] for uri in uris if uri in self.built]
        computed = [record for record in records if not record.reused]
        return SharedStage(
            kind=kind,
            needed=sum(self.needed[uri] for uri in uris),
            distinct=len(uris),
            computed=len(computed),
            seconds=round(sum(record.seconds for record in computed), 2),
        )
