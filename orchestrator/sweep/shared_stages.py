"""What trials share, computed once before any of them starts: none holds a GPU while another makes what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.engine.build import build_stage
from orchestrator.engine.console import Display
from orchestrator.engine.run_record import StageRecord
from orchestrator.engine.stage import Stage
from orchestrator.sweep.schema import SharedStage
from orchestrator.sweep.trial_worker import ends_sweep, reason
from orchestrator.sweep.trials import Trial


@dataclass
class Shared:
    """The stages before training of all trials so far, by the artifact they make."""

    stages: dict[str, Stage] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    built: dict[str, StageRecord] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """By trial: why a stage that it needs failed, such as more clusters than pairs; the others go on."""

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
            self.built[stage.artifact.uri] = build_stage(stage, display)
        except Exception as error:
            # whatever one value of the space leads to, such as more memory than there is, is no matter of the others
            if ends_sweep(error):
                raise
            return {stage.artifact.uri: reason(error)}
        return {}

    def counted(self) -> list[SharedStage]:
        """The counts by kind of artifact, in the order of the stages."""
        # in a thread, too, while more are added
        kinds = dict.fromkeys(stage.artifact.kind for stage in list(self.stages.values()))
        return [self._of_kind(kind) for kind in kinds]

    def _of_kind(self, kind: str) -> SharedStage:
        uris = [uri for uri, stage in list(self.stages.items()) if stage.artifact.kind == kind]
        records = [self.built[uri] for uri in uris if uri in self.built]
        computed = [record for record in records if not record.reused]
        return SharedStage(
            kind=kind,
            needed=sum(self.needed.get(uri, 0) for uri in uris),
            distinct=len(uris),
            computed=len(computed),
            seconds=round(sum(record.seconds for record in computed), 2),
        )
