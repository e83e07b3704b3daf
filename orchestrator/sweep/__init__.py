"""Sweeps: many runs of the pipeline with different settings, under Ray Tune.

`execute.sweep` is the entry point. A sweep plans its trials (`space`, `trials`), builds the stages that they share
(`shared_stages`), runs the trials (`tuner` in the driver, `trial_worker` in each trial's process, `board` between
them), keeps what a resumed sweep needs (`folder`, `elapsed`, `state`) and writes its `report`. May import everything
but `results` and `cli`."""
