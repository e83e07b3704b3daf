"""CLIP on torch and open_clip alone: model, loss, training step, checkpoint and evaluation, free of data loading.

Imports nothing of ours outside the package, and every layer may import it."""
