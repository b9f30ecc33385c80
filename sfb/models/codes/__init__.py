"""Dictionaries and sparse codes."""
