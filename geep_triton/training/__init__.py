"""Training: losses, recipes, data and the trainer."""
