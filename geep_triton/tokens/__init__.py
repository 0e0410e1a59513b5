"""Whatever a user has, to token ids."""
