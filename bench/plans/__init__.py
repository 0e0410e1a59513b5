"""Where one prediction after an early layer pays: models, records, families of policies, and the wall clock."""
