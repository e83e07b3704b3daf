"""Names of the files that a report consists of.

Nothing is imported here, so that trial processes which only look for a report do not load the plotting libraries."""

from __future__ import annotations

JSON_FILE = "report.json"
PAGE_FILE = "report.html"
