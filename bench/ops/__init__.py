"""Each op beside its rivals, and the resources of each compiled kernel."""
