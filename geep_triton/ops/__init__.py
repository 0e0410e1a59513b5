"""The public door of each op: check the arguments, call the implementation."""
