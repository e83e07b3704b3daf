"""Sweeps: trials, each a whole run, over a space of settings; their execution under Ray Tune, and one report.

Imports `pipeline` and the layers below it."""
