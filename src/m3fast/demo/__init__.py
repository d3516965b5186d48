"""`python -m m3fast.demo`: encodes and ranks a small corpus, in tables and a picture."""
