"""Timings of m3fast beside its peers: `pytest bench/ --benchmark`, `python -m bench.report`."""
