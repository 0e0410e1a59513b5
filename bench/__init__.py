"""Benchmarks: `pytest --benchmark-only`, and scripts whose results are committed."""
