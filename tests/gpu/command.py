"""The command line of a call: where results go, how long it may take, dry or real."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.gpu.harness import Section, run_sections
from tests.gpu.lab import Lab
from tests.gpu.report import finish


def run_call(title: str, sections: Sequence[Section], *, seconds: float) -> int:
    """Run the sections that the command line names; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json, results.md and the logs")
    parser.add_argument("--seconds", type=float, default=seconds, help="the call ends within this time (%(default)g)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in sections], metavar="SECTION")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    # SIGTERM ends the section and Ray's processes too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = [section for section in sections if given.only is None or section.name in given.only]
    if given.dry_run:
        # a deadline is for a GPU that is paid for; a busy machine may be slow
        wanted = [replace(section, seconds=given.seconds) for section in wanted]
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(is_dry=given.dry_run, scratch=Path(scratch))
        results = run_sections(wanted, lab, seconds=given.seconds, out=given.out)
    command = " ".join(["python -m", _module(), *sys.argv[1:]])
    return finish(title, command, results, given.out)


def _module() -> str:
    # the file that `python -m` runs
    return ".".join(Path(sys.argv[0]).with_suffix("").parts[-3:])
