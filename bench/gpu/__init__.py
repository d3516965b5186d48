"""Rows of a GPU."""
