"""Timings of m3fast beside its peers: `pytest bench/ --benchmark`, then `python -m bench.report`."""
