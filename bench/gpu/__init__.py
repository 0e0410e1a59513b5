"""Measures what a GPU does for the library, in one process of eight and a half minutes."""
