"""The exit table, which predicts from a sample's tokens where the sample may leave; its learned values and its file."""
