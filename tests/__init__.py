"""Settings of the test process that Ray reads when it is imported, as the command line makes them."""

import os

from orchestrator.cli import RAY_NOISE

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", RAY_NOISE)
