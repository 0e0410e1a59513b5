"""Engines over files: rows of files are classified, scored or ranked."""
