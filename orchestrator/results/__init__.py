"""The Python API: `Run` opens a finished run, `Sweep` a finished sweep.

Imports every layer but `cli`."""
