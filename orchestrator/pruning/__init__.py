"""Pruning algorithms as pure functions on arrays and tables: no cluster, no model, no files."""
