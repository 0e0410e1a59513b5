"""Promises about an engine's answers: functions above the engine that make them, keep them and watch them."""
