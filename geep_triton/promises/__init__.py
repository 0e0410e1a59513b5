"""Promises about answers, made and checked above the engine."""
