"""Files on any filesystem: whole-or-nothing writes, range reads, retries. Imports `errors` only."""
