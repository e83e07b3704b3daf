"""What is known about pairs: the catalog, keep lists, decoding, and joins with external lists.

Imports `engine` and the layers below it; `image_decode` imports nothing of ours, and every layer may import it."""
