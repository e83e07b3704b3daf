"""Training: the stage (`stage.py`), its driver and workers, and the ordered stream of pairs that they read.

Empty on purpose: reading tasks import `feed` from here, and would import torch with anything else."""
