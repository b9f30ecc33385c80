"""Collectives of plain arrays: within a node by shared memory, between nodes by messages."""
