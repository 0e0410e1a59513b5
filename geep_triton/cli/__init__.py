"""The command line: `geep`, also `python -m geep_triton`."""
