"""When a sample may leave: criteria, and the exit table that predicts it from tokens."""
