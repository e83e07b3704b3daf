"""Evaluation of models: the stage (`stage.py`), the sets (`sets.py`), their pictures through the models (`embed.py`).

Empty on purpose: a plan imports `stage` from here, and would import torch with anything else."""
