"""The Python API: `Run` opens a finished run, `Sweep` a finished sweep."""
