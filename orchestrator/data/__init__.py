"""What is known about pairs: the catalog, keep lists, decoding, and joins with lists from outside.

Imports `engine` and the layers below it."""
