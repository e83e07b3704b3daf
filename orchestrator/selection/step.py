from orchestrator.catalog import PartRows, part_groups, part_rows
from orchestrator.step import Step

__all__ = ["PartRows", "Step", "part_groups", "part_rows"]
