"""Pruning algorithms as pure functions on arrays and tables: words and scores of captions, filters, k-means, quotas,
near-duplicates, exact thresholds. No cluster, no model, no files.

Imports nothing of ours outside the package, and every layer may import it."""
