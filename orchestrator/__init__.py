"""Data-pruned CLIP training on Ray, end to end."""

__version__ = "0.1.0"
