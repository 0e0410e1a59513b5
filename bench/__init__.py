"""Benchmarks: `pytest --benchmark-only`, and scripts whose results are committed."""

import os

# oneDNN keeps the last 1,024 kernels it built, one per shape. Systems that take turns in a process would push out each other's,
# which no system meets that runs alone; torch reads this when it is first imported.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
