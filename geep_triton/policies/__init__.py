"""Policies: where a sample is first looked at, whether it leaves there, and which layers it skips."""
