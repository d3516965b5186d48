"""Rows of the HTTP server, and what runs them."""
