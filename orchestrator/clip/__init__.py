"""CLIP on torch and open_clip: models, the losses, the training step, checkpoints and evaluation metrics.

No data loading and no Ray. Modules here import only each other and `errors`. `recipe`, `schedule` and `prompts` do
not import torch, so the configuration can use them."""
