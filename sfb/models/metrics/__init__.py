"""Metric learning from pairs of samples."""
