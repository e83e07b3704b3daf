"""Pruning algorithms as pure functions on arrays and tables: words and scores of captions, filters, k-means, quotas,
near-duplicates, exact thresholds. They know nothing of Ray, models or files. Imports nothing of the project."""
