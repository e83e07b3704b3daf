"""Evaluate models on zero-shot and retrieval sets and on benchmark tasks.

`stage` is the entry point, `sets` and `tasks` open the data, `embed` runs images through the models. May import
everything up to `selection`, and `clip`. This file imports nothing, so that a plan can import `stage` without torch."""
