"""The pool that ships with the package: Parquet made by `build_pool`, written as LAION-shaped shards by `shards`.

Imports `data` and the layers below it."""
