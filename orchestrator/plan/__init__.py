"""What a run would do and what it would cost: counts known beforehand, and rates measured by a probe.

Imports `training` and the layers below it."""
