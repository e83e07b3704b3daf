"""The folder of a sweep: whose it is, what stays there when it goes on, and what goes when it begins anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config import Config
from orchestrator.config.flatten import flattened
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.storage import files
from orchestrator.sweep.elapsed import SPENT_FILE
from orchestrator.sweep.schema import JSON_FILE, PAGE_FILE, TABLE_FILE
from orchestrator.sweep.trials import TRIALS

CONFIG_FILE = "config.json"
# what may differ when a sweep goes on: where and how it runs, not what comes out
MAY_DIFFER = (
    "resume",
    "cluster",
    "tracking",
    "plan",
    "source.cache",
    "sweep.max_concurrent",
    "sweep.max_failures",
    "training.num_workers",
    "training.cpus_per_worker",
)
KEYS_TOLD = 5


def check_folder(config: Config) -> None:
    """Looks whether the sweep may have its folder; changes nothing there.

    Errors: `UserError` when `resume` is asked of a sweep with other settings, or of none; without it, when the folder
    has trials of a sweep with other settings."""
    out = str(config.out)
    place = files.join(out, CONFIG_FILE)
    is_there = files.exists(place)
    if config.resume and not is_there:
        raise UserError(f"resume=true, but there is no sweep at {out}; start it without resume")
    changed = _changed(config, files.read_json(place) if is_there else {})
    told = ", ".join(changed[:KEYS_TOLD]) + (f" and {len(changed) - KEYS_TOLD} more" if changed[KEYS_TOLD:] else "")
    if config.resume and changed:
        raise UserError(
            f"resume=true, but the sweep at {out} had other settings of {told}; give those again, or another out= "
            "(what is shared is not computed again)"
        )
    if changed and files.names(files.join(out, TRIALS)):
        raise UserError(
            f"{out} has the trials of a sweep with other settings of {told}; give another out= (what is shared is not "
            "computed again), or remove it"
        )


def _changed(config: Config, then: Mapping[str, Any]) -> list[str]:
    """The keys that differ from another sweep's, dotted, as a user writes them."""
    flat_now, flat_then = flattened(config.model_dump(mode="json")), flattened(then)
    keys = [key for key in {**flat_now, **flat_then} if flat_now.get(key) != flat_then.get(key)]
    may_differ = tuple(f"{key}." for key in MAY_DIFFER)
    return [key.replace("selection.settings.", "selection.") for key in keys if not f"{key}.".startswith(may_differ)]


def claim_folder(config: Config, display: Display) -> None:
    """Notes the settings in the sweep's folder; what an earlier one has left there goes, but for the trials of one that
    is resumed."""
    out = str(config.out)
    if not config.resume and files.names(files.join(out, TRIALS)):
        display.line(f"the trials at {out} are begun anew (resume=true goes on with them)")
        files.remove(files.join(out, TRIALS))
    for file in (JSON_FILE, TABLE_FILE, PAGE_FILE, *(() if config.resume else (SPENT_FILE,))):
        files.remove(files.join(out, file))
    files.write_json(files.join(out, CONFIG_FILE), config.model_dump(mode="json"))
