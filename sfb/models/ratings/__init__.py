"""Factors of users and items, from ratings."""
