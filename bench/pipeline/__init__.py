"""The whole pipeline beside its rivals, cell by cell."""
