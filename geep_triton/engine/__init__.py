"""Running a model under a policy, results in the caller's order."""
