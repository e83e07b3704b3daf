"""Proof on a GPU: two calls of a few minutes, each one command. `README.md` says how to run them."""
