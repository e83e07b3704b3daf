"""The report of a run: its numbers (`schema`), the code that collects them from the run's artifacts, and the HTML page.

Entry points: `write.write_report` and `write.headline`; file names are in `files`. May import everything up to
`training`, but not `plan`, `export` or `pipeline`. This file imports nothing: `page` and the figures load matplotlib,
which a process that only reads a report does not need."""
