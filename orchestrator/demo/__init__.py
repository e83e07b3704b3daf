"""The demo pool that ships with the package. `build_pool` makes its Parquet files; `shards` writes them as LAION-shaped
shards.

May import `data` and the layers below it."""
