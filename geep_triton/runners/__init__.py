"""Runners: how trained layers run."""
