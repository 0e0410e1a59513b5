"""The whole pipeline beside every rival, cell by cell."""
