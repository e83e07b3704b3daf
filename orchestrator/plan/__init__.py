"""Show what a run would do, and estimate what it would cost.

`rows` counts the pairs of each stage without computing anything. `probe` runs the stages on a small sample of the pool
and measures them; `estimates` scales the measurements to the run, and `cost_table` formats them. May import everything
up to `training`, but not `report` or `pipeline`."""
