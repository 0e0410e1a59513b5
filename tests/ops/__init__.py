"""Tests of the ops: one body for every backend and device."""
