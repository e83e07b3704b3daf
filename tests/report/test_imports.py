"""Reading a report does not load the plotting libraries."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "orchestrator.report",
    "orchestrator.report.files",
    "orchestrator.report.schema",
    "orchestrator.results",
    "orchestrator.results.run",
    "orchestrator.results.sweep",
    "orchestrator.sweep.trial_worker",
)


def test_readers_of_reports_do_not_load_matplotlib() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {MODULES}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'matplotlib' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
