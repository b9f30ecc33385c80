"""Collectives of plain arrays: within a node, and between nodes."""
