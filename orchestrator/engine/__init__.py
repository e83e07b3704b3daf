"""How work runs: artifacts, fingerprints, stages, parts, leases, the Ray cluster, progress and the run's record.

Imports `source`, `config`, `storage` and `errors`."""
