"""Write the report of a run: `report.json` for machines and one self-contained `report.html` for people."""

from __future__ import annotations

import logging

import ray

from orchestrator.engine import ray_cluster
from orchestrator.engine.run_record import RunRecord
from orchestrator.report.clusters import cluster_prunings, clusterings
from orchestrator.report.duplicates import duplicates
from orchestrator.report.examples import example_pairs
from orchestrator.report.files import JSON_FILE, PAGE_FILE
from orchestrator.report.page import render
from orchestrator.report.pairs import pairs_shown
from orchestrator.report.schema import Fingerprint, Report, Skips
from orchestrator.report.selected import catalog_skips, funnel, num_captionless, selected_steps, step_reports
from orchestrator.report.summary import headlines
from orchestrator.report.thumbnails import Thumbnails, read_thumbnails
from orchestrator.report.trained import (
    cost,
    evaluation_skips,
    evaluations,
    phase_report,
    phases,
    stage_time,
    task_tables,
    training_skips,
)
from orchestrator.report.word_tables import compare_words, word_tables
from orchestrator.storage import files

logger = logging.getLogger(__name__)


def write_report(out: str, record: RunRecord) -> None:
    """Write both files into the run's folder. Needs a connected cluster.

    Errors: `StoreError` if the folder cannot be written."""
    # runs in a task, because it reads parts with example pairs and buckets of words, which the driver should not hold
    numbers, page = ray.get(ray.remote(num_cpus=0)(_make).remote(record))
    files.write(files.join(out, JSON_FILE), numbers)
    files.write(files.join(out, PAGE_FILE), page)
    logger.info("wrote %s and %s to %s", JSON_FILE, PAGE_FILE, out)


def _make(record: RunRecord) -> tuple[bytes, bytes]:
    ray_cluster.configure_data()
    report, thumbnails = build_report(record), Thumbnails()
    if pairs := pairs_shown(report):
        thumbnails = read_thumbnails(record, record.of_kind("catalog")[0], pairs)
    return report.model_dump_json(indent=1).encode(), render(report, thumbnails).encode()


def headline(out: str) -> list[tuple[str, str]]:
    """Return two to five rows (label, number) of the report in a run's folder, for the command's last table."""
    report = Report.read(out)
    return [(row.label, f"{row.value} ({row.note})" if row.note else row.value) for row in headlines(report)]


def build_report(record: RunRecord) -> Report:
    """Build `report.json` from the artifacts of a run. Sections beyond the end of its verb stay empty."""
    steps, trained, tables = selected_steps(record), phases(record), word_tables(record)
    results = evaluations(record)
    return Report(
        name=record.name,
        verb=record.verb,
        started=record.started,
        wall_seconds=record.wall_seconds,
        funnel=funnel(record, steps),
        steps=step_reports(steps),
        captionless=num_captionless(record, steps),
        clusterings=clusterings(record, steps),
        clusters=cluster_prunings(record, steps),
        duplicates=duplicates(record, steps),
        skipped=Skips(
            catalog=catalog_skips(record),
            training={name: training_skips(phase) for name, phase in trained.items()},
            evaluation={name: evaluation_skips(result) for name, result in results.items()},
        ),
        words=compare_words(*tables) if tables else None,
        training={name: phase_report(phase) for name, phase in trained.items()},
        cost=cost(record, steps),
        evaluation=results,
        tasks=task_tables(record),
        not_evaluated=record.not_evaluated,
        examples=example_pairs(steps),
        stages=[stage_time(stage) for stage in record.stages],
        fingerprints={
            stage.name: Fingerprint(kind=stage.kind, uri=stage.uri, fingerprint=stage.artifact.fingerprint)
            for stage in record.stages
        },
        versions=record.versions,
        config=record.config,
    )
