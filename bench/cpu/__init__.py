"""Rows of a CPU."""
