"""The folder of a sweep: which settings it belongs to, what stays there on resume and what a new start removes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from orchestrator.config import Config
from orchestrator.config.flatten import flattened
from orchestrator.engine.artifact_files import read_json
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.storage import files
from orchestrator.sweep.elapsed import ELAPSED_FILE
from orchestrator.sweep.report.schema import JSON_FILE, PAGE_FILE, TABLE_FILE
from orchestrator.sweep.trials import TRIALS

logger = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
# where and how a sweep runs may change on resume, because the results do not depend on it
MAY_DIFFER = (
    "resume",
    "cluster",
    "log_level",
    "tracking",
    "plan",
    "source.cache",
    "sweep.max_concurrent",
    "sweep.max_failures",
    "training.num_workers",
    "training.cpus_per_worker",
)
MAX_KEYS_NAMED = 5


def check_folder(config: Config) -> None:
    """Check that the sweep may use its folder; change nothing there.

    Errors: `UserError` if `resume` is set and the folder has no sweep, or one with other settings; without `resume`, if
    the folder has trials of a sweep with other settings."""
    out = str(config.out)
    path = files.join(out, CONFIG_FILE)
    is_there = files.exists(path)
    if config.resume and not is_there:
        raise UserError(f"resume=true, but there is no sweep in {out}; start it without resume")
    remedy = "set another out= (stages in the store are reused)"
    changed = _changed(config, read_json(path, remedy=remedy) if is_there else {})
    named = ", ".join(changed[:MAX_KEYS_NAMED])
    if len(changed) > MAX_KEYS_NAMED:
        named += f" and {len(changed) - MAX_KEYS_NAMED} more"
    if config.resume and changed:
        raise UserError(
            f"resume=true, but the sweep in {out} has other settings of {named}; set them to its values (see "
            f"{CONFIG_FILE} there), or set another out= (stages in the store are reused)"
        )
    if changed and files.names(files.join(out, TRIALS)):
        raise UserError(
            f"{out} has the trials of a sweep with other settings of {named}; set another out= (stages in the store "
            "are reused), or remove the folder"
        )


def _changed(config: Config, then: Mapping[str, Any]) -> list[str]:
    """The keys that differ from another sweep's, dotted, as a user writes them."""
    flat_now, flat_then = flattened(config.model_dump(mode="json")), flattened(then)
    keys = [key for key in {**flat_now, **flat_then} if flat_now.get(key) != flat_then.get(key)]
    may_differ = tuple(f"{key}." for key in MAY_DIFFER)
    return [key.replace("selection.settings.", "selection.") for key in keys if not f"{key}.".startswith(may_differ)]


def claim_folder(config: Config, display: Display) -> None:
    """Write the settings into the sweep's folder and remove what an earlier sweep left there.

    If the sweep is resumed, its trials and its elapsed time stay."""
    out = str(config.out)
    if not config.resume and files.names(files.join(out, TRIALS)):
        display.line(f"restarting the trials in {out}; pass resume=true to continue them")
        files.remove(files.join(out, TRIALS))
    for file in (JSON_FILE, TABLE_FILE, PAGE_FILE, *(() if config.resume else (ELAPSED_FILE,))):
        files.remove(files.join(out, file))
    files.write_json(files.join(out, CONFIG_FILE), config.model_dump(mode="json"))
    logger.info("%s: %s in %s", config.name, "resumed" if config.resume else "started", out)
