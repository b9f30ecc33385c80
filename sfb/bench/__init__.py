"""Microbenchmarks: one a file, over one engine."""
