"""Pruning algorithms as pure functions on arrays and tables: no cluster, no model, no files.

Imports nothing of ours outside the package, and every layer may import it."""
