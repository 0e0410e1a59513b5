"""Converts any input of a user to token ids."""
