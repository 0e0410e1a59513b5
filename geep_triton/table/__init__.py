"""The exit table: where a sample may leave, predicted from its tokens; its learned values and its file."""
