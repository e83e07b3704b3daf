"""What a run would do and what it would cost: rows known beforehand, and rates measured by a probe."""
