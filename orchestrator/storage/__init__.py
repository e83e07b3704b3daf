"""Files on any filesystem: writes that are whole or absent, range reads, retries, NumPy and Arrow files.

Imports `errors` only."""
