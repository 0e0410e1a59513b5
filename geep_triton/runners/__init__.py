"""How trained layers run."""
