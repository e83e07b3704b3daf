"""Files on any file system: atomic writes, range reads, retries, NumPy arrays.

Imports `errors` only."""
