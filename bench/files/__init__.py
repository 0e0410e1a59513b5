"""Measures runs over files: killed again and again, their memory, and what small shards cost."""
