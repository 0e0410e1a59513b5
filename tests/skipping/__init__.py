"""Tests of skipping in the engine."""
