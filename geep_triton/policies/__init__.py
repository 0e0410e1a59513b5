"""What samples run under: where each is first looked at, who leaves there, what it skips."""
