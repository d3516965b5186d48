"""What is run on a machine with a GPU, in minutes that cost: docs/gpu.md. Needs no venv."""

import benchpackage  # noqa: F401 - makes `bench` importable
