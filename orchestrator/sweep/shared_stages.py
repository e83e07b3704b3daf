"""The stages that trials share, built once before any trial starts: no trial holds a GPU while another one builds what
it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.engine.build import build_stage
from orchestrator.engine.console import Display
from orchestrator.engine.run_record import StageRecord
from orchestrator.engine.stage import Stage
from orchestrator.sweep.report.schema import SharedStage
from orchestrator.sweep.state import ends_sweep, reason
from orchestrator.sweep.trials import Trial

logger = logging.getLogger(__name__)


@dataclass
class SharedStages:
    """The stages before training of all trials so far, by the URI of the artifact that they make.

    `on_lost` is called when another run takes over a lease. `failed`: by the name of a trial, why a stage that it needs
    failed, such as more clusters than pairs. The other trials still run."""

    on_lost: Callable[[], None] | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    num_uses: dict[str, int] = field(default_factory=dict)
    built: dict[str, StageRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, trials: Iterable[Trial]) -> None:
        """Count what the trials need."""
        for trial in trials:
            for uri, stage in {stage.artifact.uri: stage for stage in trial.shared_stages}.items():
                self.stages.setdefault(uri, stage)
                self.num_uses[uri] = self.num_uses.get(uri, 0) + 1

    def build(self, trials: Iterable[Trial], display: Display) -> None:
        """Build what the trials need and the store lacks, each stage once.

        Errors: those after which no trial could run, as `ends_sweep` says; any other one fails the trials that need
        the stage."""
        reasons: dict[str, str] = {}
        for trial in trials:
            for stage in trial.shared_stages:
                uri = stage.artifact.uri
                if uri not in self.built and uri not in reasons:
                    reasons |= self._build_one(stage, display)
                if uri in reasons:
                    self.failed[trial.name] = reasons[uri]
                    display.line(f"{trial.name} failed to prepare: {reasons[uri]}")
                    break

    def _build_one(self, stage: Stage, display: Display) -> dict[str, str]:
        try:
            self.built[stage.artifact.uri] = build_stage(stage, display, self.on_lost)
        except Exception as error:
            # one value of the space may need more memory than there is: the trials with other values still run
            if ends_sweep(error):
                raise
            logger.error("%s: failed", stage.name, exc_info=error)
            return {stage.artifact.uri: reason(error)}
        return {}

    def counts(self) -> list[SharedStage]:
        """Return the counts by kind of artifact, in the order of the stages."""
        # `SweepTimer` calls this in a thread while more stages are added: iterate over copies
        kinds = dict.fromkeys(stage.artifact.kind for stage in list(self.stages.values()))
        return [self._of_kind(kind) for kind in kinds]

    def _of_kind(self, kind: str) -> SharedStage:
        uris = [uri for uri, stage in list(self.stages.items()) if stage.artifact.kind == kind]
        records = [self.built[uri] for uri in uris if uri in self.built]
        computed = [record for record in records if not record.reused]
        return SharedStage(
            kind=kind,
            needed=sum(self.num_uses.get(uri, 0) for uri in uris),
            distinct=len(uris),
            computed=len(computed),
            seconds=round(sum(record.seconds for record in computed), 2),
        )
