"""The engine: it runs a model under a policy and gives results in the caller's order."""
