"""Records to tables, pages and plots: `python -m bench.report`."""
