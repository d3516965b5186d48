"""`python -m m3fast.demo`: the main job on a small multilingual corpus, in tables and a picture."""
