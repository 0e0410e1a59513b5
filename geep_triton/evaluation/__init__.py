"""Metrics of exits, policies and predictors."""
