"""Files on any file system: atomic writes, reads of byte ranges, retries over a network, arrays in NumPy's format.

Imports `errors` only."""
