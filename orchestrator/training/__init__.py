"""Training: one stage per phase (pre-training, fine-tuning), its driver and workers, and the samples that they read.

It imports evaluation, data, engine and the layers below them, and `clip`. This file is empty on purpose: reading tasks
import `reader` from here, and anything else in this file would make them import torch."""
